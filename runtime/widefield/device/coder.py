"""Tiles through a GPU: while one is computed the next is on its way there, and the last on its way back.

    stream       slot s of two                                                  waits for
    upload       latents and masks of tile k                                    nobody, see below
    compute      graphs, attention between them, pixels and half-size pixels    that upload
    download     pixels, or values, and two counts                              that computing

Before the host fills a slot it waits for the download of tile k - 2, the last that used it; with that all else that
used the slot is over, so no stream has to wait for one that comes after it. What is not finite anywhere is counted on
the GPU; such a batch is computed again in float32 and never handed on. An encoder's results are values, and so are
those of a decoder whose pixels something else is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from widefield.bundle import GraphSpec
from widefield.coder import NEVER, Array, PixelTile, TileCoder
from widefield.coder_engines import Kind
from widefield.device.gpu import Gpu
from widefield.device.ops import Ops
from widefield.device.slots import SLOTS, Slot, Slots
from widefield.geometry import Region
from widefield.tiles import gather, inside

Batch = tuple[list[Region], list[Region]]


class DeviceCoder(TileCoder):
    """A TileCoder whose `stream` goes through the GPU without waiting; one thread at a time.

    Where it makes values, it may instead be called, from many threads: of two batches one is computed while the other
    is read, and those of further threads wait.
    """

    def on(self, gpu: Gpu, ops: Ops, *, values: bool = False) -> DeviceCoder:
        """Take the GPU, and memory for two tiles on their way and what lies between graphs. Returns itself.

        `values`: make float32 values (channels, rows, columns), not pixels.
        """
        return self.through(Slots(gpu, ops, self.component, self.tile, self.batch, values=values))

    def through(self, slots: Slots) -> DeviceCoder:
        """Take what other coders of the same engines have taken already. Returns itself."""
        self._slots: Slots | None = slots
        self.gpu, self.ops, self.makes_values = slots.gpu, slots.ops, slots.makes_values
        self.up, self.compute, self.down = slots.up, slots.compute, slots.down
        self._wide: TileCoder | None = None
        return self

    @property
    def slots(self) -> Slots:
        """Those it goes through, until it is closed."""
        if self._slots is None:
            raise ValueError("the coder was closed")
        return self._slots

    def __call__(self, tiles: Sequence[Region], kept: Sequence[Region] | None = None) -> Array:
        """Up to `batch` tiles of one kind, as values."""
        if not self.makes_values or self.kind(tiles[0]) == "certified":
            return super().__call__(tiles, kept)
        read = self._read(tiles)
        slots = self.slots
        slot = slots.free.get()
        try:
            with slots.queueing:
                self._queue(slot, self.kind(tiles[0]), read)
            _, _, made = self._finished((list(tiles), list(kept or ())), slot)
            return np.stack(made)
        finally:
            slots.free.put(slot)

    def stream(
        self, batches: Iterable[list[Region]], keep: Callable[[Region], Region]
    ) -> Iterator[tuple[list[Region], list[Region], Any]]:
        waiting: tuple[Batch, Slot | None] | None = None
        for index, tiles in enumerate(batches):
            kept = [keep(tile) for tile in tiles]
            slot = None
            if self.kind(tiles[0]) != "certified":
                slot = self.slots.all[index % SLOTS]
                self._begin(slot, tiles)
            if waiting is not None:
                yield self._finished(*waiting)
            waiting = (tiles, kept), slot
        if waiting is not None:
            yield self._finished(*waiting)

    def _begin(self, slot: Slot, tiles: list[Region]) -> None:
        """Queue all of a batch. Returns when its input is read, before any of it is computed."""
        self._queue(slot, self.kind(tiles[0]), self._read(tiles))

    def _read(self, tiles: Sequence[Region]) -> dict[str, Array]:
        """What a batch's graphs are given."""
        full = [*tiles, *[tiles[-1]] * (self.batch - len(tiles))]
        found = {self.component.input: gather(self.component, self.source, full)}
        if self.kind(tiles[0]) != "interior":
            found["inside"] = inside(self.component, full, self.height, self.width)
        return found

    def _queue(self, slot: Slot, kind: Kind, read: Mapping[str, Array]) -> None:
        if slot.used:
            self.gpu.synchronize(slot.downloaded)
        for name, values in read.items():
            slot.host[name][...] = values
            self.gpu.upload(slot.given[name], slot.host[name], self.up)
        self.gpu.record(slot.uploaded, self.up)
        self.gpu.wait(self.compute, slot.uploaded)
        self._compute(kind, slot)
        self.gpu.record(slot.computed, self.compute)
        self.gpu.wait(self.down, slot.computed)
        for name, values in slot.made.items():
            self.gpu.download(slot.host_made[name], values, self.down)
        self.gpu.record(slot.downloaded, self.down)
        slot.used = True

    def _compute(self, kind: Kind, slot: Slot) -> None:
        stream, slots = self.compute, self.slots
        values: dict[str, Any] = dict(slot.given)
        counts = slot.made["counts"]
        self.ops.clear(counts, stream)
        graphs: tuple[GraphSpec, ...] = getattr(self.component, kind)
        for index, graph in enumerate(graphs):
            if index > 0:
                site = self.component.attentions[index - 1]
                query = values[site.query]
                values[site.result] = slots.place(site.result, query.shape)
                keys = slots.keys_of(site.result, self.summary.keys(site.result))
                self.ops.attend(query, keys, values[site.result], stream)
            made = {name: slots.place(name, slots.shape(name)) for name in graph.outputs}
            if self.makes_values and self.component.output in made:
                made[self.component.output] = slot.made["values"]
            engine = self._engine(kind, graph)
            engine.enqueue(stream, {name: values[name] for name in graph.inputs}, made)
            for name in graph.outputs:
                self.ops.infinite(made[name], counts[:1], stream)
            values |= made
        for index in range(0 if self.makes_values else self.batch):
            found = values[self.component.output][index]
            self.ops.levels(found, slot.made["pixels"][index], slot.made["half"][index], counts[1:], stream)
        self.calls += len(graphs)

    def _engine(self, kind: Kind, graph: GraphSpec) -> Any:
        """The engine itself: what overflows is looked for here, on the GPU."""
        engine = self.engines.engine(kind, graph)
        return getattr(engine, "narrow", engine)

    def _finished(self, batch: Batch, slot: Slot | None) -> tuple[list[Region], list[Region], Any]:
        """A batch whose pixels are on the host: sound ones, or those of float32."""
        tiles, kept = batch
        if slot is None:
            return tiles, kept, self(tiles, kept)
        self.gpu.synchronize(slot.downloaded)
        if slot.host_made["counts"].any():
            with self._lock:
                self.again += 1
            return tiles, kept, self._again(tiles, kept)
        if self.makes_values:
            return tiles, kept, slot.host_made["values"][: len(tiles)]
        made = zip(slot.host_made["pixels"], slot.host_made["half"], strict=True)
        return tiles, kept, [PixelTile(pixels, half) for pixels, half in list(made)[: len(tiles)]]

    def _again(self, tiles: list[Region], kept: list[Region]) -> Sequence[Any]:
        """The batch in float32, tile by tile; what is not finite there is refused by whoever makes pixels of it."""
        with self.slots.queueing:
            if self._wide is None:
                options = replace(self.options, precision="f32")
                self._wide = TileCoder(
                    self.engines.bundle, self.component, self.source, self.summary, self.tile, self.batch, options,
                    interior_from=0 if self._has_interior else NEVER, certify=False,
                )  # fmt: skip
        return list(self._wide(tiles, kept or None))

    def close(self) -> None:
        if self._wide is not None:
            self._wide.close()
        self._slots = None
        super().close()
