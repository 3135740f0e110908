"""Where the picture goes: tiles in, any order; a pyramid out, in one file that opens while it is being written.

    spec      what is written: size, codec, fingerprint; and the pyramid's levels
    base      one interface, `Store`: write, read, done, close
    tiff, omezarr, dzi, png     its forms, chosen by the suffix of the path (opening.py)
    pyramid   `PyramidWriter`: level-0 tiles in, every level out, on threads of its own
    sidecar, canvases           what a run keeps beside the picture until it is finished

Codecs and containers are imported when a tile is first encoded or decoded, so this package needs numpy alone.
"""

from widefield.store.base import Store
from widefield.store.opening import create_or_resume, default_codec, open_store
from widefield.store.pyramid import PyramidWriter
from widefield.store.spec import Level, StoreSpec, level_sizes

__all__ = [
    "Level",
    "PyramidWriter",
    "Store",
    "StoreSpec",
    "create_or_resume",
    "default_codec",
    "level_sizes",
    "open_store",
]
