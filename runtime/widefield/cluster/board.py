"""A folder that all workers see, of files that are whole whenever they are seen.

Two things are all that it has to give, on a local disk, on NFS (version 3 or later) or any other shared file system:
a file that is created by one of those who try at the same time (a hard link that must not exist yet), and one that is
replaced in one step (rename). Nothing here is locked, and no two machines' clocks are compared.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from widefield.errors import StoreError, WidefieldError


def publish(file: Path, target: Path) -> bool:
    """Give a file a second name, on the same file system, unless another one has it; whether it was us.

    StoreError where the file system has no hard links.
    """
    try:
        os.link(file, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise StoreError(
                f"{target.parent} has no hard links; wanted a folder that has, to be shared by many; choose another one"
            ) from error
        raise
    return True


class Gone(WidefieldError):
    """The board was taken away: the picture is finished, or somebody removed its run."""


class Board:
    """`path` is made where it is missing. Names are of files right inside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        (path / "work").mkdir(exist_ok=True)

    def create(self, name: str, data: bytes) -> bool:
        """Put a file there unless there is one; whether it was us."""
        with self._whole(data) as file:
            return self.publish(file, name)

    def publish(self, file: Path, name: str) -> bool:
        """Give a file of ours, on the same file system, a name that nobody has; whether it was us."""
        try:
            return publish(file, self.path / name)
        except FileNotFoundError:
            raise self._gone() from None

    def put(self, name: str, data: bytes) -> None:
        """Put a file there, whatever there was."""
        with self._whole(data) as file:
            try:
                file.replace(self.path / name)
            except FileNotFoundError:
                raise self._gone() from None

    def get(self, name: str) -> bytes | None:
        """What a file holds; None where there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, prefix: str) -> list[str]:
        """Of the files that begin so."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path) if entry.name.startswith(prefix))
        except FileNotFoundError:
            return []

    def drop(self, name: str) -> None:
        """Take a file away; nothing where there is none."""
        (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def room(self) -> Iterator[Path]:
        """A folder of one's own, on the same file system, removed afterwards."""
        folder = self.path / "work" / uuid.uuid4().hex
        try:
            folder.mkdir()
        except FileNotFoundError:
            raise self._gone() from None
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _whole(self, data: bytes) -> Iterator[Path]:
        file = self.path / "work" / uuid.uuid4().hex
        try:
            file.write_bytes(data)
        except FileNotFoundError:
            raise self._gone() from None
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)

    def _gone(self) -> Gone:
        return Gone(f"{self.path} was removed while it was in use; wanted the run that it belongs to; start it again")
