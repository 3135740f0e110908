"""A picture of any size to latents, tile by tile, in a planned budget.

    model.encode("photo.png").save("latents.npy")      # or .zarr
    numpy.asarray(model.encode(pixels))                # (channels, height, width) float32, in memory

Pixels v become v / 127.5 - 1. Sides are rounded up to whole latents by repeating the last row and column. The latents
are the posterior's mode as a pipeline's decoder takes them: `Model.decode` gives the picture back.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from widefield.buffers import PlanRequest
from widefield.bundle import Bundle
from widefield.certificate import Certificate
from widefield.coder import TileCoder
from widefield.device import gpu_coder, takes_tiles
from widefield.engine import EngineOptions
from widefield.errors import OverBudget, WidefieldError
from widefield.geometry import Region
from widefield.images import ImageSource, edge_padded
from widefield.options import RunOptions
from widefield.plan import Plan, make_plan
from widefield.render import Progress, batches
from widefield.sinks import LatentSink, LatentsInMemory, create_latents
from widefield.summary import Summary, load_summary
from widefield.sweep import SweepOptions, measure

Array = NDArray[np.float32]
Talk = Callable[[str, int, int], None]
MIB = 1 << 20


class PictureSource:
    """An image as an encoder reads it: (3, height, width) float32 in [-1, 1], zeros outside (graphs mask them)."""

    channels = 3

    def __init__(self, image: ImageSource, scale: int) -> None:
        self.image = edge_padded(image, scale)
        self.height, self.width = self.image.height, self.image.width

    def read(self, region: Region) -> Array:
        out = np.zeros((3, region.height, region.width), np.float32)
        part = region.clipped(self.image.extent)
        if part:
            rows, columns = part.shifted(-region.y0, -region.x0).slices
            np.multiply(self.image.read(part).transpose(2, 0, 1), np.float32(1 / 127.5), out=out[:, rows, columns])
            out[:, rows, columns] -= 1.0
        return out


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encode did. `engine_share` is the part of the workers' time that engines ran."""

    path: Path | None
    image_px: tuple[int, int]
    plan: Plan
    shape: tuple[int, int, int]
    seconds: float
    measure_seconds: float
    engine_share: float
    certificate: Certificate

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": None if self.path is None else str(self.path),
            "image_px": list(self.image_px),
            "encoded_px": self.plan.as_dict()["size_px"],
            "latents_shape": list(self.shape),
            "tile_cells": list(self.plan.tile),
            "tiles": self.plan.tiles,
            "seconds": round(self.seconds, 3),
            "measure_seconds": round(self.measure_seconds, 3),
            "engine_share": round(self.engine_share, 4),
            "certificate": self.certificate.as_dict(),
        }


class Encoding:
    """The latents of a picture, (channels, height, width) float32; made when saved or asked for as an array."""

    def __init__(self, bundle: Bundle, image: ImageSource, options: RunOptions) -> None:
        self.bundle, self.image, self.options = bundle, image, options
        self.component = bundle.encoder
        self.source = PictureSource(image, self.component.input_scale)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) in latents."""
        scale = self.component.input_scale
        return self.component.output_channels, self.source.height // scale, self.source.width // scale

    @property
    def dtype(self) -> np.dtype[np.float32]:
        return np.dtype(np.float32)

    def plan(self) -> Plan:
        """How they would be made; raises OverBudget. Computes nothing."""
        options = self.options
        summary = options.summary if options.summary in ("auto", "exact", "sampled") else "sampled"
        request = PlanRequest(
            options.memory_nbytes, options.tile, options.batch, options.workers, options.cores, cast(Any, summary),
            options.cells, options.engine_options().backend, options.precision,
            source_nbytes=self.image.nbytes, device_nbytes=options.gpu_nbytes,
        )  # fmt: skip
        return make_plan(self.bundle, self.component, *self.shape[1:], request)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        sink = LatentsInMemory(self.shape)
        self._encode(self.plan(), sink, None, None)
        return sink.array if dtype is None else sink.array.astype(dtype)

    def save(
        self, path: Path | str, *, progress: Callable[[Progress], None] | None = None, talk: Talk | None = None
    ) -> Encoded:
        """Write them to a .npy file or a .zarr array, whole or not at all.

        `progress` is called after every tile, `talk(what, done, total)` while the summary is measured, both from
        working threads. Raises StoreError, OverBudget, BadLatents.
        """
        path = Path(path)
        plan = self.plan()
        about = {"bundle": self.bundle.digest, "image": self.image.digest()}
        with create_latents(path, self.shape, plan.tile, about, overwrite=self.options.overwrite) as sink:
            return self._encode(plan, sink, progress, talk)

    def _encode(
        self, plan: Plan, sink: LatentSink, progress: Callable[[Progress], None] | None, talk: Talk | None
    ) -> Encoded:
        started = time.perf_counter()
        self._hold_image()
        summary = self._summary(plan, talk)
        measured = time.perf_counter()
        engine = self.options.engine_options(plan.workers, plan.threads, keeps=plan.keeps)
        coder = self._coder(summary, plan, engine)
        try:
            _stream(coder, plan, sink, progress)
        finally:
            coder.close()
        now = time.perf_counter()
        return Encoded(
            sink.path, (self.image.width, self.image.height), plan, self.shape, now - started, measured - started,
            coder.engine_seconds / max(1e-9, plan.workers * (now - measured)), coder.certifier.certificate(),
        )  # fmt: skip

    def _coder(self, summary: Summary, plan: Plan, engine: EngineOptions) -> TileCoder:
        if takes_tiles(engine):
            return gpu_coder(self.bundle, self.component, self.source, summary, plan, engine)
        return TileCoder(self.bundle, self.component, self.source, summary, plan.tile, plan.batch, engine)

    def _hold_image(self) -> None:
        """Decode a picture that must be decoded whole now, alone; OverBudget when that takes more than there is."""
        if self.image.nbytes < 3 * self.image.height * self.image.width:
            return
        need = 3 * self.image.nbytes  # the file, what it decodes to, and RGB
        if need > self.options.memory_nbytes:
            raise OverBudget(
                f"{self.image.name} has to be decoded whole, which takes {-(-need // MIB)} MiB; the budget is "
                f"{self.options.memory_nbytes // MIB} MiB; raise --memory, or store it as .zarr or .npy",
                smallest_nbytes=need,
            )
        self.image.read(Region(0, 0, 1, 1))

    def _summary(self, plan: Plan, talk: Talk | None) -> Summary:
        options = self.options
        if options.summary not in ("auto", "exact", "sampled"):
            return load_summary(Path(options.summary), self.component, self.bundle.digest)
        engine = replace(options, precision="f32").engine_options(plan.workers, plan.threads)
        folder = options.scratch or Path(tempfile.gettempdir())
        return measure(
            self.bundle, self.component, self.source, plan.method,
            SweepOptions(plan.sweep_batch, plan.held_nbytes, folder, engine),
            cells=plan.cells, seed=options.seed, keys=options.keys,
            progress=None if talk is None else lambda done, total: talk("measuring sites", done, total),
        )  # fmt: skip


def _tiles(plan: Plan) -> Iterator[Region]:
    """Row by row, full size: the last of a row or column may reach past the picture."""
    rows, columns = plan.tile
    for y in range(0, plan.height, rows):
        for x in range(0, plan.width, columns):
            yield Region(y, x, y + rows, x + columns)


def _stream(coder: TileCoder, plan: Plan, sink: LatentSink, progress: Callable[[Progress], None] | None) -> None:
    picture, started, lock = Region(0, 0, plan.height, plan.width), time.perf_counter(), threading.Lock()
    done = cells_done = 0

    def run(some: Iterator[list[Region]]) -> None:
        nonlocal done, cells_done
        for tiles, kept, made in coder.stream(some, lambda tile: tile.clipped(picture)):
            for tile, inner, values in zip(tiles, kept, made, strict=True):
                part = values[:, *inner.shifted(-tile.y0, -tile.x0).slices]
                if not np.isfinite(part).all():
                    raise WidefieldError(
                        f"the encoder gave values that are not numbers in {inner}; wanted finite ones; try --precision "
                        "f32"
                    )
                sink.write(inner, part)
                with lock:
                    done, cells_done = done + 1, cells_done + inner.area
                    if progress is not None:
                        px, seconds = plan.scale**2, time.perf_counter() - started
                        progress(Progress(done, plan.tiles, cells_done * px, picture.area * px, seconds))

    _on_threads(run, batches(coder, _tiles(plan)), plan.workers)


def _on_threads(work: Callable[[Iterator[list[Region]]], None], items: Iterable[list[Region]], threads: int) -> None:
    """`work` on each thread, on the items that it gets hold of; the first error, or Ctrl-C, stops all and is raised."""
    queue, lock, stopped = iter(items), threading.Lock(), threading.Event()

    def shared() -> Iterator[list[Region]]:
        while not stopped.is_set():
            with lock:
                item = next(queue, None)
            if item is None:
                return
            yield item

    def run() -> None:
        try:
            work(shared())
        except BaseException:
            stopped.set()
            raise

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(run) for _ in range(threads)]
        try:
            for future in futures:
                future.result()
        finally:
            stopped.set()
