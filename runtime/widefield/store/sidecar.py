"""OUT.partial/: what a run in progress needs and a finished picture does not.

    lock        held by the one process that writes; the kernel lets go of it when that process dies
    spec.json   whose these files are: with another fingerprint they are stale, and are emptied
    canvases    the ancestors that still wait for children (canvases.py)
    ...         journals of open shards (.zarr), pixels (.png), files on their way to their place

A folder of that name which has neither our lock nor nothing at all in it belongs to somebody else: it is left alone.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
from pathlib import Path

from widefield.errors import StoreError
from widefield.store.faults import replace_file
from widefield.store.spec import StoreSpec, spec_from_json


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of the picture `path` is."""
    return path.with_name(path.name + ".partial")


def sidecar_spec(path: Path) -> StoreSpec | None:
    """What the sidecar of the picture `path` says it belongs to; None without one."""
    record = sidecar_path(path) / "spec.json"
    return spec_from_json(record.read_bytes(), record) if record.is_file() else None


class Sidecar:
    """The folder, held by this process from here to `remove` or `release`. StoreError when another one holds it."""

    def __init__(self, picture: Path) -> None:
        self.path = sidecar_path(picture)
        self.path.mkdir(exist_ok=True)
        lock = self.path / "lock"
        if not lock.exists() and any(self.path.iterdir()):
            raise StoreError(f"{self.path} is a folder that widefield did not make; wanted to use it; move it away")
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            writer = os.pread(self._lock, 32, 0).decode() or "another process"
            self.release()
            raise StoreError(
                f"{picture} is being written by {writer}; wanted to write it alone; wait for that run or end it"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()}".encode(), 0)
        self._names = itertools.count()
        self._empty(".staged")

    def claim(self, spec: StoreSpec, *, fresh: bool) -> None:
        """Make it the sidecar of `spec`: emptied when `fresh`, or when it was another's."""
        record = self.path / "spec.json"
        if (
            not fresh
            and record.exists()
            and spec_from_json(record.read_bytes(), record).fingerprint == spec.fingerprint
        ):
            return
        self._empty()
        replace_file(record, spec.to_json().encode(), self.staging())

    def staging(self) -> Path:
        """A new path on the picture's file system, for what will be renamed into its place."""
        return self.path / f"{next(self._names)}.staged"

    def remove(self) -> None:
        """The picture is finished: delete the folder, the lock last."""
        self._empty()
        (self.path / "lock").unlink(missing_ok=True)
        self.release()
        self.path.rmdir()

    def release(self) -> None:
        """Let another process have it; what it holds stays. Again does nothing."""
        lock, self._lock = self._lock, -1  # in this order: Ctrl-C in between must not close it twice
        if lock >= 0:
            os.close(lock)

    def _empty(self, suffix: str = "") -> None:
        for entry in self.path.iterdir():
            if entry.name == "lock" or not entry.name.endswith(suffix):
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
