"""The viewer's files, read once. OpenSeadragon comes from npm when widefield is built (setup.py), never at run time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent / "page"
VENDOR = PAGE / "openseadragon"
LIBRARY = "openseadragon.min.js"
MEDIA = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is answered."""

    data: bytes
    media: str
    etag: str


def load_assets() -> dict[str, Asset]:
    """By their names; a file that is not there is not in it."""
    found = {}
    for folder in (PAGE, VENDOR):
        for path in sorted(folder.glob("*")):
            if path.is_file() and path.suffix in MEDIA:
                data = path.read_bytes()
                etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
                found[path.name] = Asset(data, MEDIA[path.suffix], etag)
    return found


def has_viewer() -> bool:
    """Whether OpenSeadragon was there when this widefield was built."""
    return (VENDOR / LIBRARY).is_file()
