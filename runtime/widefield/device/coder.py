"""Tiles through a GPU: while one is computed the next is on its way there, and the last on its way back.

    stream       slot s of two                                                  waits for
    upload       latents and masks of tile k                                    nobody, see below
    compute      graphs, attention between them, pixels and half-size pixels    that upload
    download     pixels and two counts                                          that computing

Before the host fills a slot it waits for the download of tile k - 2, the last that used it; with that all else that
used the slot is over, so no stream has to wait for one that comes after it. What is not finite anywhere is counted on
the GPU; such a batch is computed again in float32 and never handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import GraphSpec
from widefield.coder import PixelTile, TileCoder
from widefield.coder_engines import Kind
from widefield.device.gpu import Gpu
from widefield.device.ops import Ops
from widefield.geometry import Region
from widefield.tiles import gather, inside

SLOTS = 2
Batch = tuple[list[Region], list[Region]]


@dataclass
class Slot:
    """One of two sets of what goes in and out, and the marks that say who is done with it."""

    host: dict[str, NDArray[np.float32]]
    given: dict[str, Any]
    pixels: Any
    half: Any
    counts: Any
    host_pixels: NDArray[np.uint8]
    host_half: NDArray[np.uint8]
    host_counts: NDArray[np.int64]
    uploaded: Any
    computed: Any
    downloaded: Any
    used: bool = False


class DeviceCoder(TileCoder):
    """A TileCoder whose `stream` goes through the GPU without waiting; one thread at a time."""

    def on(self, gpu: Gpu, ops: Ops) -> DeviceCoder:
        """Take the GPU, and memory for two tiles on their way and what lies between graphs. Returns itself."""
        self.gpu, self.ops = gpu, ops
        self.up, self.compute, self.down = gpu.stream(), gpu.stream(), gpu.stream()
        self._wide: TileCoder | None = None
        self._between: dict[str, Any] = {}
        self._keys: dict[str, Any] = {}
        self._slots = [self._slot() for _ in range(SLOTS)]
        return self

    def _slot(self) -> Slot:
        gpu, batch = self.gpu, self.batch
        values, tile = self.component.values, self.tile
        shape = values[self.component.input].shape(batch, *tile)
        margin = 2 * self.component.margin_cells
        shapes = {self.component.input: shape, "inside": (batch, 1, tile[0] + margin, tile[1] + margin)}
        rows, columns = (side * self.component.output_scale for side in tile)
        channels = self.component.output_channels
        large, small = (batch, rows, columns, channels), (batch, -(-rows // 2), -(-columns // 2), channels)
        return Slot(
            {name: gpu.pinned(shape, np.float32) for name, shape in shapes.items()},
            {name: gpu.empty(shape, np.float32) for name, shape in shapes.items()},
            gpu.empty(large, np.uint8), gpu.empty(small, np.uint8), gpu.empty((2,), np.int64),
            gpu.pinned(large, np.uint8), gpu.pinned(small, np.uint8), gpu.pinned((2,), np.int64),
            gpu.event(), gpu.event(), gpu.event(),
        )  # fmt: skip

    def stream(
        self, batches: Iterable[list[Region]], keep: Callable[[Region], Region]
    ) -> Iterator[tuple[list[Region], list[Region], Any]]:
        waiting: tuple[Batch, Slot | None] | None = None
        for index, tiles in enumerate(batches):
            kept = [keep(tile) for tile in tiles]
            slot = None
            if self.kind(tiles[0]) != "certified":
                slot = self._slots[index % SLOTS]
                self._begin(slot, tiles)
            if waiting is not None:
                yield self._finished(*waiting)
            waiting = (tiles, kept), slot
        if waiting is not None:
            yield self._finished(*waiting)

    def _begin(self, slot: Slot, tiles: list[Region]) -> None:
        """Queue all of a batch. Returns when its latents are read, before any of it is computed."""
        kind = self.kind(tiles[0])
        full = [*tiles, *[tiles[-1]] * (self.batch - len(tiles))]
        if slot.used:
            self.gpu.synchronize(slot.downloaded)
        slot.host[self.component.input][...] = gather(self.component, self.source, full)
        names = [self.component.input]
        if kind != "interior":
            slot.host["inside"][...] = inside(self.component, full, self.height, self.width)
            names.append("inside")
        for name in names:
            self.gpu.upload(slot.given[name], slot.host[name], self.up)
        self.gpu.record(slot.uploaded, self.up)
        self.gpu.wait(self.compute, slot.uploaded)
        self._compute(kind, slot)
        self.gpu.record(slot.computed, self.compute)
        self.gpu.wait(self.down, slot.computed)
        for into, values in (
            (slot.host_counts, slot.counts), (slot.host_pixels, slot.pixels), (slot.host_half, slot.half)
        ):  # fmt: skip
            self.gpu.download(into, values, self.down)
        self.gpu.record(slot.downloaded, self.down)
        slot.used = True

    def _compute(self, kind: Kind, slot: Slot) -> None:
        stream = self.compute
        values: dict[str, Any] = dict(slot.given)
        self.ops.clear(slot.counts, stream)
        graphs: tuple[GraphSpec, ...] = getattr(self.component, kind)
        for index, graph in enumerate(graphs):
            if index > 0:
                site = self.component.attentions[index - 1]
                query = values[site.query]
                values[site.result] = self._place(site.result, query.shape)
                self.ops.attend(query, self._keys_of(site.result), values[site.result], stream)
            made = {name: self._place(name, self._shape(name)) for name in graph.outputs}
            engine = self._engine(kind, graph)
            engine.enqueue(stream, {name: values[name] for name in graph.inputs}, made)
            for name in graph.outputs:
                self.ops.infinite(made[name], slot.counts[:1], stream)
            values |= made
        for index in range(self.batch):
            found = values[self.component.output][index]
            self.ops.levels(found, slot.pixels[index], slot.half[index], slot.counts[1:], stream)
        self.calls += len(graphs)

    def _engine(self, kind: Kind, graph: GraphSpec) -> Any:
        """The engine itself: what overflows is looked for here, on the GPU."""
        engine = self.engines.engine(kind, graph)
        return getattr(engine, "narrow", engine)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.component.values[name].shape(self.batch, *self.tile)

    def _place(self, name: str, shape: tuple[int, ...]) -> Any:
        """Memory for a value between graphs: one is enough, for the compute stream does one thing after another."""
        if name not in self._between:
            self._between[name] = self.gpu.empty(shape, np.float32)
        return self._between[name]

    def _keys_of(self, result: str) -> Any:
        if result not in self._keys:
            self._keys[result] = self.ops.keys(self.summary.keys(result))
        return self._keys[result]

    def _finished(self, batch: Batch, slot: Slot | None) -> tuple[list[Region], list[Region], Any]:
        """A batch whose pixels are on the host: sound ones, or those of float32."""
        tiles, kept = batch
        if slot is None:
            return tiles, kept, self(tiles, kept)
        self.gpu.synchronize(slot.downloaded)
        if slot.host_counts.any():
            self.again += 1
            return tiles, kept, self._again(tiles, kept)
        made = zip(slot.host_pixels, slot.host_half, strict=True)
        return tiles, kept, [PixelTile(pixels, half) for pixels, half in list(made)[: len(tiles)]]

    def _again(self, tiles: list[Region], kept: list[Region]) -> Sequence[Any]:
        """The batch in float32, tile by tile; what is not finite there is refused by whoever makes pixels of it."""
        if self._wide is None:
            options = replace(self.options, precision="f32")
            self._wide = TileCoder(
                self.engines.bundle, self.component, self.source, self.summary, self.tile, self.batch, options,
                certify=False,
            )  # fmt: skip
        return list(self._wide(tiles, kept))

    def close(self) -> None:
        if self._wide is not None:
            self._wide.close()
        self._slots, self._between, self._keys = [], {}, {}
        super().close()


def slots_nbytes(shapes: Mapping[str, tuple[int, ...]], pixels: int) -> int:
    """Bytes on the GPU of both slots: what goes in, float32, and `pixels` bytes of pixels with their halves."""
    given = sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    return SLOTS * (given + pixels + -(-pixels // 4))
