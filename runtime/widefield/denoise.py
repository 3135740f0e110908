"""The denoiser on batches of windows: what one step of a sampler asks of it, guidance included.

    m = model(input_scale x, timestep, text)               guidance of kind "none" or "embedded", or a scale of 1
    m = model(..., negative) + guidance (model(..., text) - model(..., negative))      kind "free": two calls a step

Shapes   x, m: (batch, channels, rows, columns) of one of the bundle's window shapes.
Source   Ho & Salimans, Classifier-free diffusion guidance, 2022.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Bundle
from widefield.device import device_steps, takes_tiles
from widefield.engine import Engine, EngineOptions, open_engine
from widefield.errors import BadRequest
from widefield.parts import BATCH, WindowGraph
from widefield.prompt import Conditioning
from widefield.reading import Threads
from widefield.schedule import Step, guided

if TYPE_CHECKING:
    from widefield.device.steps import DeviceSteps

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """What the denoiser is told of the prompts: `negative` is used by free guidance with a scale other than 1."""

    positive: Conditioning
    negative: Conditioning


class Denoiser:
    """One window shape at `batch` windows a call of the engine, of which `options.workers` run side by side.

    The engine opens on the first call. Safe from several threads.
    """

    def __init__(self, bundle: Bundle, window: WindowGraph, guide: Guide, batch: int, options: EngineOptions) -> None:
        part, defaults = bundle.parts.denoiser, bundle.parts.defaults
        if part is None or defaults is None:
            raise BadRequest(f"{bundle.name} has no denoiser; it decodes and encodes only; export a whole checkpoint")
        self.bundle, self.part, self.window, self.guide = bundle, part, window, guide
        self.batch, self.options = batch, options
        self.calls = 0
        self.threads = Threads(options.workers, "windows")  # for who has several batches of windows
        self._callers = Threads(options.workers, "denoiser")
        self._turns = threading.BoundedSemaphore(options.workers)
        self._shapes = part.shapes(window, batch)
        self._free = defaults.guidance_kind == "free"
        prompts = (guide.positive, guide.negative) if self._free else (guide.positive,)
        self._told = [self._conditions(prompt) for prompt in prompts]
        self._mixed: dict[tuple[int, ...], dict[str, Array]] = {}
        self._engine: Engine | None = None
        self._steps: DeviceSteps | None = None
        self._lock = threading.Lock()

    def __call__(self, x: Array, timestep: float, input_scale: float = 1.0, guidance: float = 1.0) -> Array:
        """m for any number of windows. With free guidance a window is two rows of a batch, one for each prompt."""
        same = {"timestep": timestep, "guidance": guidance}
        feeds = {name: np.full(shape, same[name], np.float32) for name, shape in self._shapes.items() if name in same}
        scaled = x if input_scale == 1.0 else x * np.float32(input_scale)
        free = self._free and guidance != 1.0
        rows, prompts = (np.concatenate([scaled, scaled]), [0, 1]) if free else (scaled, [0])
        told = np.repeat(prompts, len(x))
        starts = range(0, len(rows), self.batch)
        calls = [(rows[start : start + self.batch], told[start : start + self.batch], feeds) for start in starts]
        found = np.concatenate(list(self._callers.map(lambda call: self._call(*call), calls)))
        return guided(found[: len(x)], found[len(x) :], guidance) if free else found

    def run(self, steps: Sequence[Step], x: Array, guidance: float, noise: Callable[[int], Array]) -> Array | None:
        """Up to a batch of windows after all `steps`, where a GPU takes them there: they go to it once, and come back
        once. `noise(i)` is what step i draws. None where windows are denoised on the host, and where anything was not
        finite: then take the steps one by one, each of which is guarded.
        """
        if not takes_tiles(self.options):
            return None
        told = self._told if self._free and guidance != 1.0 else self._told[:1]
        made = self._on_gpu()(steps, x, told, guidance, noise)
        with self._lock:
            self.calls += len(steps) * len(told)
        return made

    def _call(self, x: Array, told: NDArray[np.intp], feeds: Mapping[str, Array]) -> Array:
        """Up to a batch of rows, and which prompt each is told; the batch is filled up with the last one."""
        count = len(x)
        if count < self.batch:
            more = self.batch - count
            x, told = np.concatenate([x, x[-1:].repeat(more, 0)]), np.concatenate([told, told[-1:].repeat(more)])
        out = np.empty(self._shapes["latent"], np.float32)
        given = {"latent": np.ascontiguousarray(x), **feeds, **self._conditions_of(tuple(told.tolist()))}
        with self._turns:
            self._opened().run(given, {self.part.output: out})
            self.calls += 1
        return out[:count]

    def _conditions_of(self, told: tuple[int, ...]) -> dict[str, Array]:
        """What a batch's rows are told. An input without an axis for the batch says nothing of a prompt."""
        if told not in self._mixed:
            of = [self._told[prompt] for prompt in told]
            per_row = {name for name, axes in self.part.inputs.items() if axes[:1] == (BATCH,)}
            self._mixed[told] = {
                name: np.concatenate([row[name] for row in of]) if name in per_row else value
                for name, value in of[0].items()
            }
        return self._mixed[told]

    def _conditions(self, of: Conditioning) -> dict[str, Array]:
        """What a prompt and the window determine, as the engine takes it for one window."""
        side = self.bundle.scale
        height, width = self.window.rows * side, self.window.columns * side
        values: dict[str, Array | None] = {
            "text": of.text, "pooled": of.pooled, "text_mask": of.mask,
            "sizes": np.array([height, width, 0, 0, height, width], np.float32),
            "position": np.array(self.window.place or (0, 0), np.float32),
        }  # fmt: skip
        told = {}
        for name, shape in self.part.shapes(self.window, 1).items():
            if name in ("latent", "timestep", "guidance"):
                continue
            value = values.get(name)
            if value is None:
                raise BadRequest(f"{self.bundle.name}: the denoiser wants {name}, the prompt gives none; export again")
            told[name] = np.array(np.broadcast_to(value, shape), np.float32, order="C")
        return told

    def _on_gpu(self) -> DeviceSteps:
        engine = self._opened()
        with self._lock:
            if self._steps is None:
                self._steps = device_steps(engine, self.options, self._shapes, self.part.output)
            return self._steps

    def _opened(self) -> Engine:
        with self._lock:
            if self._engine is None:
                options = replace(self.options, keeps=True)
                self._engine = open_engine(self.bundle.file(self.window.file), self._shapes, {}, options)
            return self._engine

    def close(self) -> None:
        """Give the engine back; calling it twice is harmless, and so is another call of the denoiser."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = self._steps = None
        self.threads.close()
        self._callers.close()
