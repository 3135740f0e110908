"""The denoiser on batches of windows: what one step of a sampler asks of it, guidance included.

    m = model(input_scale x, timestep, text)               guidance of kind "none" or "embedded", or a scale of 1
    m = model(..., negative) + guidance (model(..., text) - model(..., negative))      kind "free": two calls a step

Shapes   x, m: (batch, channels, rows, columns) of one of the bundle's window shapes.
Source   Ho & Salimans, Classifier-free diffusion guidance, 2022.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Bundle
from widefield.engine import Engine, EngineOptions, open_engine
from widefield.errors import BadRequest
from widefield.parts import WindowGraph
from widefield.prompt import Conditioning
from widefield.reading import Threads
from widefield.schedule import guided

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """What the denoiser is told of the prompts: `negative` is used by free guidance with a scale other than 1."""

    positive: Conditioning
    negative: Conditioning


class Denoiser:
    """One window shape at `batch` windows a call of the engine, of which `options.workers` run side by side.

    The engine opens on the first call, and one for single windows when a few are left over; safe from several threads.
    """

    def __init__(self, bundle: Bundle, window: WindowGraph, guide: Guide, batch: int, options: EngineOptions) -> None:
        part, defaults = bundle.parts.denoiser, bundle.parts.defaults
        if part is None or defaults is None:
            raise BadRequest(f"{bundle.name} has no denoiser; it decodes and encodes only; export a whole checkpoint")
        self.bundle, self.part, self.window, self.guide = bundle, part, window, guide
        self.batch, self.options = batch, options
        self.windows = batch * options.workers  # worth asking for at once
        self.calls = 0
        self._threads = Threads(options.workers, "denoiser")
        self._turns = threading.BoundedSemaphore(options.workers)
        self._shapes = part.shapes(window, 1)
        self._free = defaults.guidance_kind == "free"
        prompts = (guide.positive, guide.negative) if self._free else (guide.positive,)
        self._told = [self._conditions(prompt) for prompt in prompts]
        self._engines: dict[int, Engine] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Array, timestep: float, input_scale: float = 1.0, guidance: float = 1.0) -> Array:
        """m for any number of windows."""
        same = {"timestep": timestep, "guidance": guidance}
        feeds = {name: np.full(shape, same[name], np.float32) for name, shape in self._shapes.items() if name in same}
        parts = list(_batches(len(x), self.batch))
        scaled = x if input_scale == 1.0 else x * np.float32(input_scale)
        free = self._free and guidance != 1.0
        told = [{**feeds, **conditions} for conditions in (self._told if free else self._told[:1])]
        tasks = [(scaled[some], size, feeds) for feeds in told for some, size in parts]
        found = np.concatenate(list(self._threads.map(lambda task: self._call(*task), tasks)))
        return guided(found[: len(x)], found[len(x) :], guidance) if free else found

    def _call(self, x: Array, size: int, feeds: Mapping[str, Array]) -> Array:
        """Up to `size` windows, which an engine takes; fewer are filled up and cut again."""
        latent = x if len(x) == size else np.concatenate([x, np.repeat(x[-1:], size - len(x), 0)])
        shapes = self.part.shapes(self.window, size)
        given = {name: np.array(np.broadcast_to(value, shapes[name]), order="C") for name, value in feeds.items()}
        out = np.empty(shapes["latent"], np.float32)
        engine = self._opened(size)
        with self._turns:
            engine.run({"latent": np.ascontiguousarray(latent), **given}, {self.part.output: out})
            self.calls += 1
        return out[: len(x)]

    def _conditions(self, of: Conditioning) -> dict[str, Array]:
        """What a prompt and the window determine, as the engine takes it."""
        side = self.bundle.scale
        height, width = self.window.rows * side, self.window.columns * side
        values: dict[str, Array | None] = {
            "text": of.text, "pooled": of.pooled, "text_mask": of.mask,
            "sizes": np.array([height, width, 0, 0, height, width], np.float32),
            "position": np.array(self.window.place or (0, 0), np.float32),
        }  # fmt: skip
        told = {}
        for name, shape in self._shapes.items():
            if name in ("latent", "timestep", "guidance"):
                continue
            value = values.get(name)
            if value is None:
                raise BadRequest(f"{self.bundle.name}: the denoiser wants {name}, the prompt gives none; export again")
            told[name] = np.array(np.broadcast_to(value, shape), np.float32, order="C")
        return told

    def _opened(self, size: int) -> Engine:
        with self._lock:
            if size not in self._engines:
                shapes = self.part.shapes(self.window, size)
                options = replace(self.options, keeps=True)
                self._engines[size] = open_engine(self.bundle.file(self.window.file), shapes, {}, options)
            return self._engines[size]

    def close(self) -> None:
        """Give the engine back; calling it twice is harmless."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()
            self._engines.clear()
        self._threads.close()


def _batches(count: int, batch: int) -> Iterator[tuple[slice, int]]:
    """(which windows, how many the engine takes): whole batches; of the rest, one that is filled up if it is mostly
    full, else single windows."""
    whole = count // batch * batch
    if 2 * (count - whole) > batch:
        whole += batch
    for start in range(0, whole, batch):
        yield slice(start, start + batch), batch
    for start in range(whole, count):
        yield slice(start, start + 1), 1
