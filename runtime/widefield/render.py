"""The executor: blocks of tiles through a coder, on worker threads, into a pyramid.

Every store tile is made by one worker, whatever the plan (widefield.grid). The writer encodes on its own thread; its
queue is bounded, and a worker that gets ahead of it waits.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from widefield.coder import PixelTile, TileCoder
from widefield.errors import WidefieldError
from widefield.geometry import Region
from widefield.grid import Grid
from widefield_kernels.epilogue import halve_reference, to_levels_reference, to_pixels_reference

__all__ = ["Grid", "Progress", "Put", "batches", "decode_region", "stream"]

Pixels = NDArray[np.uint8]


class Put(Protocol):
    """Takes a store tile, and its box mean where it was made on the way."""

    def __call__(self, row: int, column: int, pixels: Pixels, *, half: Pixels | None) -> None: ...


def decode_region(coder: TileCoder, grid: Grid, region: Region) -> Pixels:
    """(height, width, 3) uint8 of a region of pixels, tile by tile."""
    out = np.empty((region.height, region.width, coder.component.output_channels), np.uint8)
    cells = Region(
        region.y0 // grid.scale, region.x0 // grid.scale, -(-region.y1 // grid.scale), -(-region.x1 // grid.scale)
    )
    found = dict.fromkeys(_tiles_meeting(grid, cells))
    for batch, kept, made in coder.stream(batches(coder, found), grid.kept):
        for tile, part, values in zip(batch, kept, made, strict=True):
            _paste(grid, tile, values, region, out, part)
    return out


def _tiles_meeting(grid: Grid, cells: Region) -> Iterator[Region]:
    rows, columns = grid.block
    for top in range(cells.y0 // rows * rows, cells.y1, rows):
        for left in range(cells.x0 // columns * columns, cells.x1, columns):
            block = Region(top, left, top + rows, left + columns).clipped(grid.picture)
            yield from (tile for tile in grid.tiles(block) if tile.clipped(cells))


def _paste(
    grid: Grid,
    tile: Region,
    values: NDArray[np.float32] | PixelTile,
    region: Region,
    out: Pixels,
    kept: Region,
    half: Pixels | None = None,
) -> None:
    """Convert the kept part of a tile that lies in `region` straight into its place in `out`, and of half the size into
    `half`: cells are an even number of pixels, so no box lies on two tiles."""
    part = kept.scaled(grid.scale).clipped(region)
    if not part:
        return
    here = part.shifted(-tile.y0 * grid.scale, -tile.x0 * grid.scale)
    there = part.shifted(-region.y0, -region.x0)
    if isinstance(values, PixelTile):
        _copy(values, here, there, out, half)
        return
    found = values[:, *here.slices]
    if half is None:
        _, bad = to_pixels_reference(found, out[there.slices])
    else:
        rows, columns = (slice(s.start // 2, -(-s.stop // 2)) for s in there.slices)
        _, _, bad = to_levels_reference(found, out[there.slices], half[rows, columns])
    if bad:
        raise WidefieldError(
            f"the decoder gave {bad} values that are not numbers at rows {part.y0}-{part.y1}, columns "
            f"{part.x0}-{part.x1}; look at the latents there"
        )


def _copy(tile: PixelTile, here: Region, there: Region, out: Pixels, half: Pixels | None) -> None:
    """Pixels that are made already, and those of half the size; over an odd edge they are made of what is kept."""
    found = out[there.slices]
    found[...] = tile.pixels[here.slices]
    if half is None:
        return
    rows, columns = (slice(s.start // 2, -(-s.stop // 2)) for s in there.slices)
    if here.height % 2 or here.width % 2:
        halve_reference(found, half[rows, columns])
    else:
        half[rows, columns] = tile.half[here.y0 // 2 : here.y1 // 2, here.x0 // 2 : here.x1 // 2]


def batches(coder: TileCoder, tiles: Iterable[Region]) -> Iterator[list[Region]]:
    """Runs of tiles of one kind, at most a batch each."""
    for _, same in itertools.groupby(tiles, key=coder.kind):
        run = list(same)
        for start in range(0, len(run), coder.batch):
            yield run[start : start + coder.batch]


@dataclass(frozen=True, slots=True)
class Progress:
    """What a callback is told: store tiles and pixels done of all, and seconds since the run began."""

    done: int
    total: int
    px_done: int
    px_total: int
    seconds: float


def stream(
    coder: TileCoder,
    grid: Grid,
    missing: NDArray[np.bool_],
    put: Put,
    *,
    workers: int,
    progress: Callable[[Progress], None] | None = None,
    blocks: Iterable[Region] | None = None,
) -> None:
    """Make every store tile that is `missing` (rows, columns) and `put` it. An error or Ctrl-C stops all workers."""
    total, px_total = int(missing.sum()), grid.pixels.area
    state = _State(total, px_total, progress)
    work: queue.Queue[Region | None] = queue.Queue(workers)

    def run() -> None:
        try:
            while missing.all() and coder.open_next() and not state.stopped.is_set():
                continue
            while (block := work.get()) is not None and not state.stopped.is_set():
                _make_block(coder, grid, block, missing, put, state)
        except BaseException as error:  # noqa: BLE001 -- handed to the caller's thread, which raises it
            state.fail(error)

    threads = [threading.Thread(target=run, name=f"decode-{n}", daemon=True) for n in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for block in grid.blocks() if blocks is None else blocks:
            if any(missing[index] for index, _ in grid.store_tiles(block)):
                _offer(work, block, state)
            if state.stopped.is_set():
                break
    except BaseException:
        state.stopped.set()
        raise
    finally:
        _finish(work, threads, state)
    if state.error is not None:
        raise state.error


class _State:
    def __init__(self, total: int, px_total: int, progress: Callable[[Progress], None] | None) -> None:
        self.total, self.px_total, self.progress = total, px_total, progress
        self.done = self.px_done = 0
        self.started = time.perf_counter()
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self.lock = threading.Lock()

    def fail(self, error: BaseException) -> None:
        with self.lock:
            self.error = self.error or error
        self.stopped.set()

    def count(self, px: int) -> None:
        with self.lock:
            self.done += 1
            self.px_done += px
            if self.progress is not None:
                seconds = time.perf_counter() - self.started
                self.progress(Progress(self.done, self.total, self.px_done, self.px_total, seconds))


def _offer(work: queue.Queue[Region | None], block: Region, state: _State) -> None:
    """Queue a block, giving up when the workers have stopped."""
    while not state.stopped.is_set():
        try:
            work.put(block, timeout=0.2)
        except queue.Full:
            continue
        return


def _finish(work: queue.Queue[Region | None], threads: Sequence[threading.Thread], state: _State) -> None:
    for _ in threads:
        while any(thread.is_alive() for thread in threads):
            try:
                work.put(None, timeout=0.2)
            except queue.Full:
                continue
            break
    for thread in threads:
        thread.join()


def _make_block(
    coder: TileCoder,
    grid: Grid,
    block: Region,
    missing: NDArray[np.bool_],
    put: Put,
    state: _State,
) -> None:
    wanted = {index: area for index, area in grid.store_tiles(block) if missing[index]}
    channels = coder.component.output_channels
    canvases = {index: np.empty((area.height, area.width, channels), np.uint8) for index, area in wanted.items()}
    halves: dict[tuple[int, int], Pixels | None] = dict.fromkeys(wanted)
    if grid.scale % 2 == 0:
        for index, area in wanted.items():
            halves[index] = np.empty((-(-area.height // 2), -(-area.width // 2), channels), np.uint8)
    tiles = [
        tile for tile in grid.tiles(block) if any(tile.scaled(grid.scale).clipped(area) for area in wanted.values())
    ]
    for batch, kept, made in coder.stream(_until(state, batches(coder, tiles)), grid.kept):
        for tile, part, values in zip(batch, kept, made, strict=True):
            for index, area in wanted.items():
                _paste(grid, tile, values, area, canvases[index], part, halves[index])
    if state.stopped.is_set():
        return
    for index, area in wanted.items():
        put(*index, canvases[index], half=halves[index])
        state.count(area.area)


def _until(state: _State, found: Iterable[list[Region]]) -> Iterator[list[Region]]:
    """The batches, as long as nobody has stopped."""
    return itertools.takewhile(lambda _: not state.stopped.is_set(), found)
