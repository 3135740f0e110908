"""An OSError said in one line: what was found, what was wanted, what to do. And writes that are whole or raise."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from widefield.errors import StoreError

_AGAIN = "then run the same command again: it resumes where it stopped"


def reason(error: OSError, path: Path) -> str:
    """One line about `error`, which writing or reading `path` met."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"{path}: no space left on the disk ({_free(path)}); wanted room for more tiles; free some, {_AGAIN}"
        case errno.EFBIG:
            return (
                f"{path}: the file would pass the largest size allowed here; wanted room; raise `ulimit -f`, {_AGAIN}"
            )
        case errno.EACCES | errno.EPERM:
            return f"{path}: permission denied; wanted to write there; change the permissions or choose another folder"
        case errno.EROFS:
            return f"{path}: the file system is read-only; wanted to write there; choose another folder"
        case errno.ENOENT | errno.ENOTDIR:
            return f"{path}: no such file or folder; wanted a path in a folder that exists; create the folder first"
        case errno.EMFILE | errno.ENFILE:
            return f"{path}: too many open files; wanted one more; raise `ulimit -n`, {_AGAIN}"
        case _:
            return f"{path}: {error.strerror or error}; wanted to read or write it; mend that, {_AGAIN}"


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free >> 20} MiB free"
    except OSError:
        return "its free space is unknown"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(reason(error, path)) from error


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`. A full disk gives a short write first and its OSError on the next try."""
    written = os.pwrite(fd, data, offset)
    if written < len(data):
        view = memoryview(data)
        while written < len(view):
            written += os.pwrite(fd, view[written:], offset + written)


def replace_file(path: Path, data: bytes, staging: Path) -> None:
    """Put `data` at `path` so that a reader finds all of it or what was there before. `staging`: same file system."""
    with staging.open("wb", buffering=0) as file:
        pwrite_all(file.fileno(), data, 0)
    staging.replace(path)
