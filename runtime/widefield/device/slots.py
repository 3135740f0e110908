"""What tiles of one shape go through a GPU in: three streams, two sets of what goes in and out, and what lies between.

Coders of pictures that share engines share it, too, as those of a drawing's levels do: so memory does not grow with
levels, and engines meet the addresses again that they have recorded (`Replay`).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Component
from widefield.device.gpu import Gpu
from widefield.device.ops import Ops

SLOTS = 2


@dataclass
class Slot:
    """One of two sets of what goes in and out, and the marks that say who is done with it."""

    host: dict[str, NDArray[np.float32]]
    given: dict[str, Any]
    made: dict[str, Any]  # "values", or "pixels" and "half"; and "counts"
    host_made: dict[str, NDArray[Any]]
    uploaded: Any
    computed: Any
    downloaded: Any
    used: bool = False


class Slots:
    """Of a component, for `batch` tiles of rows x columns cells, of one summary; taken at once.

    `values`: what is made are float32 values (channels, rows, columns), not pixels. `queueing` is held by who queues
    work; `free` has the slots that no caller is in.
    """

    def __init__(
        self, gpu: Gpu, ops: Ops, component: Component, tile: tuple[int, int], batch: int, *, values: bool = False
    ) -> None:
        self.gpu, self.ops, self.component, self.tile, self.batch = gpu, ops, component, tile, batch
        self.makes_values = values
        self.up, self.compute, self.down = gpu.stream(), gpu.stream(), gpu.stream()
        self.all = [self._slot() for _ in range(SLOTS)]
        self.free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in self.all:
            self.free.put(slot)
        self.queueing = threading.Lock()
        self._between: dict[str, Any] = {}
        self._keys: dict[str, Any] = {}

    def _slot(self) -> Slot:
        gpu, batch = self.gpu, self.batch
        values, tile = self.component.values, self.tile
        shape = values[self.component.input].shape(batch, *tile)
        margin = 2 * self.component.margin_cells
        shapes = {self.component.input: shape, "inside": (batch, 1, tile[0] + margin, tile[1] + margin)}
        made: dict[str, tuple[tuple[int, ...], Any]] = {"counts": ((2,), np.int64)}
        if self.makes_values:
            made["values"] = self.shape(self.component.output), np.float32
        else:
            rows, columns = (side * self.component.output_scale for side in tile)
            channels = self.component.output_channels
            made["pixels"] = (batch, rows, columns, channels), np.uint8
            made["half"] = (batch, -(-rows // 2), -(-columns // 2), channels), np.uint8
        return Slot(
            {name: gpu.pinned(shape, np.float32) for name, shape in shapes.items()},
            {name: gpu.empty(shape, np.float32) for name, shape in shapes.items()},
            {name: gpu.empty(*of) for name, of in made.items()}, {name: gpu.pinned(*of) for name, of in made.items()},
            gpu.event(), gpu.event(), gpu.event(),
        )  # fmt: skip

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value of the component."""
        return self.component.values[name].shape(self.batch, *self.tile)

    def place(self, name: str, shape: tuple[int, ...]) -> Any:
        """Memory for a value between graphs: one is enough, for the compute stream does one thing after another."""
        if name not in self._between:
            self._between[name] = self.gpu.empty(shape, np.float32)
        return self._between[name]

    def keys_of(self, result: str, keys: NDArray[np.float32]) -> Any:
        """A site's frozen keys, on the GPU from the first time on."""
        if result not in self._keys:
            self._keys[result] = self.ops.keys(keys, self.compute)
        return self._keys[result]


def slots_nbytes(
    component: Component, shapes: Mapping[str, tuple[int, ...]], batch: int, tile: tuple[int, int], *, values: bool
) -> int:
    """Bytes on the GPU of both slots: what goes in, float32, and what is made, float32 `values` or pixels with their
    halves."""
    given = sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    rows, columns = (side * component.output_scale for side in tile)
    made = batch * rows * columns * component.output_channels
    return SLOTS * (given + (4 * made if values else made + -(-made // 4)))


def makes_pixels(component: Component) -> bool:
    """Whether what a component makes is a picture."""
    return component.name == "decoder"
