"""Objects in a bucket, under the names that files beside a picture have on a disk. obstore is imported here alone.

Two things are all that a bucket has to give: an object is there whole or not at all, and one is created by one of
those who try at the same time (PUT with If-None-Match: *). Where and who is told by the variables of AWS
(AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, ...), as obstore reads them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from widefield.errors import BadRequest, MissingBackend, StoreError

SCHEMES = ("s3",)
PIECE, AT_ONCE = 8 << 20, 2  # bytes of a large file on its way, and how many of these: what it takes of memory


class Objects:
    """`url` is of the folder; keys are paths in it."""

    def __init__(self, url: str) -> None:
        scheme = url.partition(":")[0]
        if scheme not in SCHEMES:
            raise BadRequest(f"{url} is a place that cannot be written to; wanted s3://BUCKET/... or a path on a disk")
        try:
            import obstore
            from obstore.store import S3Store
        except ModuleNotFoundError as cause:
            raise MissingBackend("s3:// needs obstore; pip install 'widefield[s3]'") from cause
        self.url, self._obstore, self._faults = url, obstore, obstore.exceptions
        with self._explained():
            self._store: Any = S3Store.from_url(url)

    def create(self, key: str, data: bytes | Path) -> str | None:
        """Put an object there unless there is one; its version, None where there was."""
        with self._explained():
            try:
                return str(self._obstore.put(self._store, key, data, mode="create")["e_tag"])
            except self._faults.AlreadyExistsError:
                return None

    def change(self, key: str, data: bytes, version: str) -> str | None:
        """Replace one version of an object; the new version, None where it is not that one any more."""
        with self._explained():
            try:
                return str(self._obstore.put(self._store, key, data, mode={"e_tag": version})["e_tag"])
            except (self._faults.PreconditionError, self._faults.NotFoundError, FileNotFoundError):
                return None

    def put(self, key: str, file: Path) -> None:
        """Put a file there, however large, whatever there was."""
        with self._explained():
            self._obstore.put(self._store, key, file, chunk_size=PIECE, max_concurrency=AT_ONCE)

    def get(self, key: str) -> bytes | None:
        """What an object holds; None where there is none."""
        with self._explained():
            try:
                return bytes(self._obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def fetch(self, key: str, file: Path) -> bool:
        """Put an object where a file shall be, whole; whether there is one."""
        with self._explained():
            try:
                pieces = self._obstore.get(self._store, key).stream(PIECE)
            except FileNotFoundError:
                return False
            file.parent.mkdir(parents=True, exist_ok=True)
            work = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
            try:
                with work.open("wb") as out:
                    for piece in pieces:
                        out.write(piece)
                work.replace(file)
            finally:
                work.unlink(missing_ok=True)
            return True

    def part(self, key: str, start: int, length: int) -> bytes | None:
        """Some bytes of an object; None where there is none."""
        with self._explained():
            try:
                return bytes(self._obstore.get_range(self._store, key, start=start, length=length))
            except FileNotFoundError:
                return None

    def end(self, key: str, length: int) -> bytes | None:
        """The last bytes of an object; None where there is none."""
        with self._explained():
            try:
                return bytes(self._obstore.get(self._store, key, options={"range": {"suffix": length}}).bytes())
            except FileNotFoundError:
                return None

    def has(self, key: str) -> bool:
        """Whether there is such an object."""
        with self._explained():
            try:
                self._obstore.head(self._store, key)
            except FileNotFoundError:
                return False
            return True

    def names(self, folder: str) -> list[str]:
        """Keys of all objects in a folder and below."""
        with self._explained():
            pages = self._obstore.list(self._store, folder + "/", chunk_size=1000)
            return sorted(each["path"] for page in pages for each in page)

    def drop(self, *keys: str) -> None:
        """Take objects away; nothing where there are none."""
        if keys:
            with self._explained():
                self._obstore.delete(self._store, list(keys))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (self._faults.BaseError, FileNotFoundError) as error:
            said = " ".join(str(error).split("\n\nDebug source")[0].split())
            raise StoreError(
                f"{self.url}: {said[:300]}; wanted to read or write there; look at the AWS_ variables and at who may"
            ) from error
