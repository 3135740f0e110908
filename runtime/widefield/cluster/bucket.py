"""A picture in a bucket, made by many: claims and what is done are objects, and so is every file of the picture.

    coast.zarr/...  coast.zarr.provenance/...  coast.summary.safetensors       the picture, as on a disk
    coast.zarr.cluster/FINGERPRINT/board/claim-TASK.0    who is at what
    coast.zarr.cluster/FINGERPRINT/board/done-TASK       that its files are all there
    coast.zarr.cluster/FINGERPRINT/...  coast.levels/... what tasks leave for each other

A worker keeps copies of what it reads and makes in a folder of its own. What is decided by the first is created, and
whoever is second takes theirs; a shard that is made twice is the same bytes twice, and put there twice.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from widefield.cluster.board import Board, Gone
from widefield.cluster.objects import Objects
from widefield.cluster.place import Place
from widefield.cluster.work import Stage, Task
from widefield.store.hashes import MANIFEST, provenance_path
from widefield.store.omezarr import ZarrStore
from widefield.store.spec import StoreSpec, level_sizes

DONE = "done-"
FRESH_SECONDS = 0.5  # for so long a list of the board is believed


class Bucket(Place):
    """`url` of the picture, s3://.../NAME.zarr; `scratch`, where this worker's copies are (the system's folder)."""

    def __init__(self, url: str, scratch: Path | None) -> None:
        folder, _, name = url.rpartition("/")
        self.objects, self.name = Objects(folder), url
        self.root = Path(tempfile.mkdtemp(prefix="widefield-", dir=scratch))
        self.path = self.root / name
        self._finished = False
        self._board: BucketBoard | None = None

    def key(self, path: Path) -> str:
        """Of a file on this disk."""
        return path.relative_to(self.root).as_posix()

    def look(self) -> bool:
        if not self.fetch(self.path / "zarr.json"):
            return False
        spec = ZarrStore.found(self.path)
        assert spec is not None
        if not all(self.fetch(file) for file in self._arrays(spec)):
            self.lay_out(spec)  # whoever began was interrupted
        return True

    def lay_out(self, spec: StoreSpec) -> None:
        ZarrStore.lay_out(self.path, spec)
        for file in (self.path / "zarr.json", *self._arrays(spec)):
            self.decide(file)

    def _arrays(self, spec: StoreSpec) -> list[Path]:
        levels = level_sizes(spec.width_px, spec.height_px, spec.tile_px)
        return [self.path / str(level) / "zarr.json" for level in range(len(levels))]

    def board(self, fingerprint: str) -> Board:
        self._board = BucketBoard(self.folder / fingerprint[:16], self)
        return self._board

    def shared(self, stage: Stage) -> Stage:
        assert self._board is not None
        tasks = [Task(task.name, partial(self._board.seen, DONE + task.name)) for task in stage.tasks]
        return replace(stage, tasks=tasks, opened=partial(self._opened, stage, self._board))

    @contextmanager
    def _opened(self, stage: Stage, board: BucketBoard) -> Iterator[Callable[[str], None]]:
        with ExitStack() as engines:
            run: Callable[[str], None] | None = None

            def do(name: str) -> None:
                nonlocal run
                if board.has(DONE + name):  # since the last look
                    return
                for path in stage.reads(name):
                    self.fetch(path)
                run = run or engines.enter_context(stage.opened())
                run(name)
                for path in stage.writes(name):
                    self._send(path, decides=stage.decides)
                board.create(DONE + name, b"")

            yield do

    def _send(self, path: Path, *, decides: bool) -> None:
        """Nothing where a task had nothing to write. Of the picture's own shards no copy is kept."""
        if not path.is_file():
            return
        if decides:
            self.decide(path)
            return
        self.objects.put(self.key(path), path)
        if path.is_relative_to(self.path):
            path.unlink()

    def fetch(self, path: Path) -> bool:
        """Have a file here, if it is there."""
        return path.is_file() or self.objects.fetch(self.key(path), path)

    def decide(self, path: Path) -> None:
        """Create it from a file of ours, or have theirs here."""
        if self.objects.create(self.key(path), path) is None:
            self.objects.fetch(self.key(path), path)

    def finished(self) -> bool:
        self._finished = self._finished or self.objects.has(self.key(provenance_path(self.path) / MANIFEST))
        return self._finished

    def clean(self) -> None:
        for folder in (self.folder, self.path.with_name(f"{self.path.stem}.levels")):
            self.objects.drop(*self.objects.names(self.key(folder)))

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


class BucketBoard(Board):
    """Names are of objects in the board's folder; `path`, and rooms, are on this disk."""

    def __init__(self, path: Path, bucket: Bucket) -> None:
        super().__init__(path)
        self._bucket, self._objects = bucket, bucket.objects
        self._versions: dict[str, str] = {}  # of what we put there
        self._seen: frozenset[str] = frozenset()
        self._looked = float("-inf")

    def _key(self, name: str) -> str:
        return self._bucket.key(self.path / "board" / name)

    def create(self, name: str, data: bytes) -> bool:
        version = self._objects.create(self._key(name), data)
        if version is not None:
            self._versions[name] = version
        return version is not None

    def put(self, name: str, data: bytes) -> None:
        version = self._objects.change(self._key(name), data, self._versions.get(name, ""))
        if version is None:
            raise Gone(
                f"{self._key(name)} is not there as it was put; wanted the run that it belongs to; start it again"
            )
        self._versions[name] = version

    def get(self, name: str) -> bytes | None:
        return self._objects.get(self._key(name))

    def names(self, prefix: str) -> list[str]:
        folder = self._bucket.key(self.path / "board")
        self._seen = frozenset(key.removeprefix(folder + "/") for key in self._objects.names(folder))
        self._looked = time.monotonic()
        return sorted(name for name in self._seen if name.startswith(prefix))

    def drop(self, name: str) -> None:
        self._objects.drop(self._key(name))

    def seen(self, name: str) -> bool:
        """Whether a name is there, by a list that is not old."""
        if time.monotonic() - self._looked > FRESH_SECONDS:
            self.names("")
        return name in self._seen

    def has(self, name: str) -> bool:
        """Whether it is there now."""
        return self._objects.has(self._key(name))
