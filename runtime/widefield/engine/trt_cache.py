"""Where built engines are kept: a folder, a name that follows from all that an engine depends on, whole or not at all.

`$WIDEFIELD_CACHE`, else `$XDG_CACHE_HOME/widefield`, else `~/.cache/widefield`; engines lie in `engines` there, and the
timing cache, which makes the next build quicker, beside them: one for each GPU and version of TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What an engine depends on. `bundle` is the SHA-256 of its manifest, which has those of all its files."""

    bundle: str
    graph: str
    shapes: Mapping[str, tuple[int, ...]]
    precision: str
    capability: str
    library: str

    @property
    def name(self) -> str:
        """A file name: the graph's, and a hash of everything."""
        text = json.dumps(asdict(self), sort_keys=True, default=list)
        return f"{Path(self.graph).stem}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.engine"

    @property
    def timing(self) -> str:
        """The timing cache's file name."""
        return f"{self.library.replace(' ', '-')}-sm{self.capability}.timing"


def cache_folder() -> Path:
    """The folder of engines; it may not be there yet."""
    own = os.environ.get("WIDEFIELD_CACHE")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "widefield"
    return base / "engines"


def bundle_identity(graph: Path) -> str:
    """SHA-256 of the manifest beside a graph; of the graph itself where there is none."""
    manifest = graph.parent / "manifest.json"
    return hashlib.sha256((manifest if manifest.is_file() else graph).read_bytes()).hexdigest()


def read(name: str, folder: Path) -> bytes | None:
    """A file of the cache; None where it is not there."""
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        return None


def mapped(name: str, folder: Path) -> mmap.mmap | None:
    """A file of the cache as memory that is read when it is looked at; None where it is not there, or is empty."""
    try:
        with (folder / name).open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError):
        return None


def keep(name: str, content: bytes | memoryview, folder: Path) -> Path:
    """Write a file of the cache at once: readers see all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as stream:
        stream.write(content)
    Path(stream.name).replace(folder / name)
    return folder / name
