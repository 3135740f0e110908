"""The last stage: tiles' hashes from the parts, the picture's manifest from those. With it the picture is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from widefield.cluster.decoding import Shards
from widefield.cluster.work import Stage, Task
from widefield.geometry import morton_order
from widefield.save import summary_path
from widefield.store.faults import explained
from widefield.store.hashes import HASHES, MANIFEST, TileHashes, provenance_path
from widefield.store.manifest import seal
from widefield.store.shardpart import Place


def seal_picture(shards: Shards, finished: Callable[[], bool], before: Callable[[], None]) -> Stage:
    """`before` is called first, for what has to be there before the picture is finished."""

    @contextmanager
    def opened() -> Iterator[Callable[[str], None]]:
        def run(_: str) -> None:
            with explained(shards.store.path):
                before()
                _seal(shards)

        yield run

    folder = provenance_path(shards.store.path)
    return Stage(
        "seal", [Task("seal", finished)], opened,
        lambda _: shards.files.for_seal(),
        lambda _: (summary_path(shards.store.path), folder / HASHES, folder / MANIFEST),
    )  # fmt: skip


def _seal(shards: Shards) -> None:
    store = shards.store
    folder = provenance_path(store.path)
    with closing(TileHashes(folder / HASHES, store.spec, store.levels, writable=True)) as hashes:
        for place in morton_order(*shards.parts.count):
            _take_over(shards, place, hashes)
        manifest = seal(hashes, store.spec, store.levels, store.read_encoded)
    with shards.board.room() as room:
        (room / MANIFEST).write_bytes(manifest)
        (room / MANIFEST).replace(folder / MANIFEST)


def _take_over(shards: Shards, place: Place, hashes: TileHashes) -> None:
    """The hashes that a shard's maker found, to where the picture has them."""
    levels = shards.parts.part(place)
    spec = replace(shards.store.spec, width_px=levels[0].width_px, height_px=levels[0].height_px)
    with closing(TileHashes(shards.files.part_path(place) / HASHES, spec, levels, writable=False)) as part:
        for index, level in enumerate(levels):
            rows, columns = shards.parts.tiles(place, index)
            for row in range(level.rows):
                hashes.put_row(index, rows.start + row, columns.start, part.row(index, row))
