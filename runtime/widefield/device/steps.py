"""Steps of a sampler on a GPU: windows go there once, are denoised where they are, and come back once.

    m = model(input_scale x, timestep, text)        two prompts: m = m(negative) + guidance (m(positive) - m(negative))
    x' = a x + b m + c n + h                        h' = history_x x + history_m m           (see widefield.schedule)

Shapes   x, m, n, h: (batch, channels, rows, columns) float32, of the engine's batch; fewer windows are filled up.
Numbers  as `schedule.update` has them, to float32 rounding: a GPU may multiply and add at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.device.gpu import Gpu
from widefield.device.ops import Ops
from widefield.schedule import Step

Array = NDArray[np.float32]


class DeviceSteps:
    """An engine that denoises, `shapes` of its inputs, and what a run of steps needs on the GPU, taken once.

    Threads take turns. `engine.enqueue` has to be there: of engine trt, or ort on a GPU.
    """

    def __init__(self, engine: Any, gpu: Gpu, ops: Ops, shapes: Mapping[str, tuple[int, ...]], output: str) -> None:
        self.engine, self.gpu, self.ops, self.output = getattr(engine, "narrow", engine), gpu, ops, output
        self.shapes = dict(shapes)
        self.stream = gpu.stream()
        self._turns = threading.Lock()
        self._rooms: dict[str, Any] = {}
        self._told: dict[str, Array] = {}  # what the rooms have of prompts
        self._count = gpu.empty((1,), np.int64)
        self._host = gpu.pinned(self.shapes["latent"], np.float32)
        self._host_count = gpu.pinned((1,), np.int64)

    def __call__(
        self,
        steps: Sequence[Step],
        x: Array,
        told: Sequence[Mapping[str, Array]],
        guidance: float,
        noise: Callable[[int], Array],
    ) -> Array | None:
        """What the steps make of up to a batch of windows; None where anything was not finite in half precision, and
        the caller has to make it again in float32.

        `told` is what the engine is given beside latent, timestep and guidance: for one prompt, or for the positive and
        the negative one; arrays that are the same as before are there already, and must not have been changed.
        `noise(i)` is asked for step i where that draws some.
        """
        with self._turns:
            for index, given in enumerate(told):
                for name, value in given.items():
                    self._tell(name, index, value)
            self._fill("guidance", guidance)
            state = self._latent("x")
            self._upload(state, x)
            self.ops.clear(self._count, self.stream)
            self.ops.fill(self._latent("history"), 0.0, self.stream)
            for index, step in enumerate(steps):
                self._step(step, len(told), guidance, noise(index) if step.c != 0.0 else None)
            self.ops.infinite(state, self._count, self.stream)
            self.gpu.download(self._host, state, self.stream)
            self.gpu.download(self._host_count, self._count, self.stream)
            self.gpu.synchronize(self.stream)
            return None if self._host_count.any() else self._host[: len(x)].copy()

    def _step(self, step: Step, prompts: int, guidance: float, noise: Array | None) -> None:
        x, m, n, history = (self._latent(name) for name in ("x", "m", "noise", "history"))
        self._fill("timestep", step.timestep)
        self.ops.scale(x, step.input_scale, self._latent("latent"), self.stream)
        results = [m, self._latent("m of the negative")][:prompts]
        for index, result in enumerate(results):
            feeds = {name: self._room(name, index) for name in self.shapes}
            self.engine.enqueue(self.stream, feeds, {self.output: result})
        if prompts > 1:
            self.ops.guide(m, results[1], guidance, self.stream)
        self.ops.infinite(m, self._count, self.stream)
        if noise is not None:
            self._upload(n, noise)
        self.ops.step(step, x, m, n, history, self.stream)

    def _tell(self, name: str, prompt: int, value: Array) -> None:
        key = f"{name} {prompt}"
        if self._told.get(key) is not value:
            self.gpu.upload(self._room(name, prompt), _full(value, self.shapes[name]), self.stream)
            self.gpu.synchronize(self.stream)
            self._told[key] = value

    def _upload(self, into: Any, values: Array) -> None:
        """Through pinned memory, which the copy before may still be reading."""
        self.gpu.synchronize(self.stream)
        self._host[...] = _full(values, self._host.shape)
        self.gpu.upload(into, self._host, self.stream)

    def _fill(self, name: str, value: float) -> None:
        if name in self.shapes:
            self.ops.fill(self._room(name, 0), value, self.stream)

    def _latent(self, name: str) -> Any:
        return self._memory(name, self.shapes["latent"])

    def _room(self, name: str, prompt: int) -> Any:
        """Memory for an input; those that say nothing of a prompt are the same for both."""
        shared = name in ("latent", "timestep", "guidance")
        return self._memory(name if shared else f"{name} {prompt}", self.shapes[name])

    def _memory(self, name: str, shape: tuple[int, ...]) -> Any:
        """Zeros at first: nothing is multiplied that nobody wrote."""
        if name not in self._rooms:
            self._rooms[name] = self.gpu.empty(shape, np.float32)
            self.ops.fill(self._rooms[name], 0.0, self.stream)
        return self._rooms[name]


def _full(values: Array, shape: tuple[int, ...]) -> Array:
    """Of the whole batch: the last window again where there are fewer; one row's values where all have the same."""
    if len(values) < shape[0] and values.ndim == len(shape):
        values = np.concatenate([values, np.repeat(values[-1:], shape[0] - len(values), 0)])
    return np.ascontiguousarray(np.broadcast_to(values, shape), np.float32)
