"""What many tests need and takes long to make: once a run, in however many processes (pytest-xdist) the tests are."""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Only one process at a time is inside, of those that name the same file."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def once(top: Path, name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name` of `top`, filled by whoever asks first; the others wait. It appears whole or not at all."""
    made = top / name
    with alone(top / f"{name}.lock"):
        if not made.exists():
            work = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=top))
            fill(work)
            work.rename(made)
    return made


def top_of_run(basetemp: Path) -> Path:
    """The folder of all of a run's processes: pytest's own, or where it has several, the one around theirs."""
    return basetemp.parent if "PYTEST_XDIST_WORKER" in os.environ else basetemp
