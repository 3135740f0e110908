"""Where a picture is made by many: a folder that all of them see, or a bucket of an object store (bucket.py).

A worker always works on files of a disk. In a folder these are everybody's; of a bucket each worker has its own copies,
of what it needs: before a task what it reads is fetched, after it what it wrote is sent (`Stage.reads`, `.writes`).
"""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from widefield.cluster.board import Board
from widefield.cluster.work import Stage
from widefield.errors import StoreError
from widefield.store.hashes import MANIFEST, forget_provenance, provenance_path
from widefield.store.omezarr import ZarrStore
from widefield.store.spec import StoreSpec

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")  # a Path writes one slash where there were two


def remote_url(path: Path) -> str | None:
    """s3://bucket/... where a path says that; None for one on a disk."""
    found = _URL.fullmatch(str(path))
    return None if found is None else f"{found[1]}://{found[2]}"


class Place(ABC):
    """`path` is the picture on this worker's disk, `folder` beside it what only an unfinished one needs, `name` what
    people call it."""

    path: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.path.with_name(self.path.name + ".cluster")

    @abstractmethod
    def look(self) -> bool:
        """Whether the picture was laid out; then its metadata is at `path`."""

    @abstractmethod
    def lay_out(self, spec: StoreSpec) -> None:
        """Make an empty picture, unless another worker was first: then theirs is at `path`."""

    @abstractmethod
    def board(self, fingerprint: str) -> Board:
        """Of the picture with that fingerprint."""

    @abstractmethod
    def shared(self, stage: Stage) -> Stage:
        """The same stage, with all that others see of it."""

    @abstractmethod
    def finished(self) -> bool:
        """Whether the picture has its manifest."""

    @abstractmethod
    def clean(self) -> None:
        """Take away what only an unfinished picture needs."""

    @abstractmethod
    def close(self) -> None:
        """Give back what this worker holds."""


class Folder(Place):
    """On a disk that all see."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def look(self) -> bool:
        if not self.path.parent.is_dir():
            raise StoreError(
                f"{self.path.parent} is not a folder; wanted one to put {self.path.name} in; create it first"
            )
        return self.path.exists()

    def lay_out(self, spec: StoreSpec) -> None:
        forget_provenance(self.path)
        with self.board(spec.fingerprint).room() as room:
            ZarrStore.lay_out(room / self.path.name, spec)
            try:
                (room / self.path.name).rename(self.path)
            except OSError:
                if not self.path.exists():
                    raise

    def board(self, fingerprint: str) -> Board:
        return Board(self.folder / fingerprint[:16])

    def shared(self, stage: Stage) -> Stage:
        return stage

    def finished(self) -> bool:
        return (provenance_path(self.path) / MANIFEST).is_file()

    def clean(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        pass
