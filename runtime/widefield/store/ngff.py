"""The JSON of an OME-Zarr 0.5 picture. Pure: specs in, documents out.

Level k's pixel (y, x) is the mean of a 2**k box of level 0, so its centre is at 2**k * (y, x) + (2**k - 1) / 2.
Source: NGFF 0.5 (multiscales, omero); Zarr v3 core and its sharding-indexed codec.
"""

from __future__ import annotations

from typing import Any

from widefield.store.provenance import SOFTWARE, source_type
from widefield.store.spec import Level, StoreSpec, as_record


def group_metadata(spec: StoreSpec, levels: tuple[Level, ...]) -> dict[str, Any]:
    """zarr.json of the group."""
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    multiscale = {
        "name": "picture",
        "type": "mean",
        "axes": axes,
        "datasets": [_dataset(level) for level in range(len(levels))],
    }
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    colours = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))
    channels = [{"label": name, "color": color, "window": window, "active": True} for name, color in colours]
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {
            "ome": {"version": "0.5", "multiscales": [multiscale], "omero": {"channels": channels}},
            "widefield": as_record(spec),
            "software": SOFTWARE,
            "digitalSourceType": source_type(spec.metadata),
        },
    }


def _dataset(level: int) -> dict[str, Any]:
    factor = float(2**level)
    shift = (factor - 1) / 2
    return {
        "path": str(level),
        "coordinateTransformations": [
            {"type": "scale", "scale": [1.0, factor, factor]},
            {"type": "translation", "translation": [0.0, shift, shift]},
        ],
    }


def array_metadata(spec: StoreSpec, level: Level, *, shard_tiles: tuple[int, int]) -> dict[str, Any]:
    """zarr.json of one level. `shard_tiles`: rows and columns of chunks in a shard."""
    tile = spec.tile_px
    rows, columns = shard_tiles
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": [3, tile, tile],
        "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}],
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [3, level.height_px, level.width_px],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [3, rows * tile, columns * tile]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["c", "y", "x"],
        "attributes": {},
        "storage_transformers": [],
    }
