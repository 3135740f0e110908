"""Level-0 tiles in, a whole pyramid out, in one pass and on threads of its own.

    tile -> encode -> its quarter of the parent (box mean, exact) -> canvas file -> commit; then, if that was the
    parent's last quarter, the parent goes the same way, on the same thread

Tiles may come in any order; in Morton order O(levels) ancestors are open at a time. Memory: queue_tiles + 5 a thread
tiles. After `kill -9`, the next writer goes on from what the store and its canvases hold (canvases.py says why that is
enough). Should the canvases be lost, the tiles under an ancestor that needs them are asked for again.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np

from widefield.errors import StoreError
from widefield.geometry import morton_order
from widefield.store.base import Marks, Store
from widefield.store.box import Pixels, box
from widefield.store.canvases import Canvases, Key
from widefield.store.faults import explained, reason


class PyramidWriter:
    """Feeds a store that was opened to write.

    `bytes_written` and `encode_seconds` (the sum over threads) grow as it runs. `put` takes the array over: it must not
    be changed afterwards. Use it as a context: leaving it closes, or aborts when an error passes.
    """

    def __init__(self, store: Store, *, threads: int = 1, queue_tiles: int = 8) -> None:
        if store.sidecar is None:
            raise StoreError(f"{store.path} was opened for reading; wanted to write; use create_or_resume")
        if threads < 1 or queue_tiles < 1:
            raise ValueError(f"threads and queue_tiles count from 1, got {threads} and {queue_tiles}")
        self._store = store
        self._bytes_before = store.bytes_written
        self.encode_seconds = 0.0
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._running = threads  # how many still have to be told to stop
        with explained(store.path):
            self._canvases = Canvases(store.sidecar.path / "canvases", store.spec.tile_px)
            self._todo = self._what_remains()
            self._resume_ancestors()
        self._given = ~self._todo[0]
        self._jobs: queue.SimpleQueue[tuple[Key, Pixels, Pixels | None] | None] = queue.SimpleQueue()
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()  # a bounded queue, without queue.Queue's Python
        for _ in range(queue_tiles):
            self._places.put(None)
        self._threads = [threading.Thread(target=self._work, name=f"store-{n}", daemon=True) for n in range(threads)]
        store.before_close(self.abort)
        for thread in self._threads:
            thread.start()

    @property
    def bytes_written(self) -> int:
        """Of encoded tiles, by the store since this writer was made."""
        return self._store.bytes_written - self._bytes_before

    # What there is to do.

    def _what_remains(self) -> list[Marks]:
        """For each level, the tiles to make: those not done, and those under an ancestor whose canvas is lost."""
        store = self._store
        todo = [~store.done(level) for level in range(len(store.levels))]
        held = [np.zeros_like(marks) for marks in todo]
        for level, row, column in self._canvases:
            held[level][row, column] = True
        for level in range(len(todo) - 1, 0, -1):
            lost = todo[level] & ~held[level]
            rows, columns = todo[level - 1].shape
            todo[level - 1] |= lost.repeat(2, axis=0)[:rows].repeat(2, axis=1)[:, :columns]
        return todo

    def _resume_ancestors(self) -> None:
        """Forget canvases that are done with; finish those that a kill left full."""
        for key in sorted(self._canvases):
            level, row, column = key
            if not self._todo[level][row, column]:
                self._canvases.free(key)
                continue
            children = self._children(key)
            for child, quarter in children:
                if not self._todo[level - 1][child]:
                    self._canvases.arrived(key, quarter, len(children))
        for key in sorted(self._canvases):
            level, row, column = key
            full = not self._canvases.waits(key, self._quarters(key))
            if full and self._todo[level][row, column]:  # not made meanwhile, by the last of its children
                self._make(key, self._assembled(key))

    def missing(self) -> Iterator[tuple[int, int]]:
        """(row, column) of the level-0 tiles to `put`, in Morton order. Tiles that were put meanwhile are left out."""
        todo = self._todo[0]
        for row, column in morton_order(*todo.shape):
            if todo[row, column]:
                yield row, column

    # What callers give.

    def put(self, row: int, column: int, pixels: Pixels, *, half: Pixels | None = None) -> None:
        """Take a level-0 tile, uint8 (h, w, 3), clipped or full, C-contiguous at best. While the queue is full, the
        caller does a thread's work.

        A tile that is done, or was put before, is passed over. Call it from one thread.
        `half` is its box mean (box.py), clipped alike, when an engine's epilogue has made it already: it saves a sixth
        of the work. StoreError, once and for all, when an earlier tile could not be written; ValueError for a tile of
        another shape.
        """
        self._raise()
        if self._closed:
            raise ValueError("the writer is closed")
        pixels = self._store.clipped(0, row, column, pixels)
        if half is not None:
            height, width = -(-pixels.shape[0] // 2), -(-pixels.shape[1] // 2)
            half = half[:height, :width]
            if half.dtype != np.uint8 or half.shape != (height, width, 3):
                raise ValueError(f"half of tile {row},{column} is uint8 ({height}, {width}, 3), got {half.shape}")
        if not self._given[row, column]:
            self._given[row, column] = True
            job = (0, row, column), pixels, half
            try:
                self._places.get_nowait()
            except queue.Empty:
                self._try(*job)
                self._raise()
            else:
                self._jobs.put(job)

    def close(self) -> None:
        """Write what is queued, check that every tile of every level is there, and finish the store.

        StoreError when one could not be written or was never put; the store can then be resumed.
        """
        if self._closed:
            return
        self._drain()
        self._raise()
        left = [int(marks.sum()) for marks in self._todo]
        if any(left):
            raise StoreError(
                f"{self._store.path} lacks {left[0]} of {self._todo[0].size} tiles ({sum(left)} on all levels); "
                "wanted all of them; run the same command again: it resumes"
            )
        self._store.finish()

    def abort(self) -> None:
        """Write what is queued if that works, and leave a store to resume from. Raises nothing about tiles."""
        if not self._closed:
            self._drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _drain(self) -> None:
        while self._running:
            self._jobs.put(None)
            self._running -= 1
        for thread in self._threads:
            if thread.is_alive():  # or ended, or Ctrl-C came as it started: then it finds its None and no job
                thread.join()
        self._closed = True
        self._canvases.close()

    def _raise(self) -> None:
        if isinstance(self._error, OSError):
            raise StoreError(reason(self._error, self._store.path)) from self._error
        if self._error is not None:
            raise self._error

    # What the threads do.

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._places.put(None)
            if self._error is None:  # else keep the queue moving, so that nobody waits for ever
                self._try(*job)

    def _try(self, key: Key, pixels: Pixels, half: Pixels | None) -> None:
        try:
            self._make(key, pixels, half)
        except Exception as error:  # noqa: BLE001  it is raised again, at the next put or close
            traceback.clear_frames(error.__traceback__)  # which hold mapped canvases
            self._error = error

    def _make(self, key: Key, pixels: Pixels, half: Pixels | None = None) -> None:
        """Commit a tile, and every ancestor that it completes. `half`: its box mean, where somebody has it."""
        while True:
            data = self._encode(key, pixels)  # first, since it brings the pixels into the cache for `box`
            parent = self._parent(key)
            completes = parent is not None and self._hand_up(parent, key, pixels, half)
            self._commit(key, data)
            if not completes or parent is None:
                return
            key, pixels, half = parent, self._assembled(parent), None

    def _hand_up(self, parent: Key, key: Key, pixels: Pixels, half: Pixels | None) -> bool:
        """Write a tile's quarter of its parent. Whether it was the last."""
        quarter = key[1] % 2 * 2 + key[2] % 2
        place = self._canvases.place(parent, quarter, -(-pixels.shape[0] // 2), -(-pixels.shape[1] // 2))
        if half is None:
            box(pixels, out=place)
        else:
            place[:] = half
        return self._canvases.arrived(parent, quarter, self._quarters(parent))

    def _encode(self, key: Key, pixels: Pixels) -> bytes:
        start = time.perf_counter()
        data = self._store.encode(*key, pixels)
        with self._lock:
            self.encode_seconds += time.perf_counter() - start
        return data

    def _commit(self, key: Key, data: bytes) -> None:
        self._store.commit(*key, data)
        level, row, column = key
        self._todo[level][row, column] = False
        if level > 0:
            self._canvases.free(key)

    def _assembled(self, key: Key) -> Pixels:
        return self._canvases.take(key, *self._store.tile_shape(*key))

    def _parent(self, key: Key) -> Key | None:
        """A tile's parent; None at the top, and where it is made already."""
        level, row, column = key[0] + 1, key[1] // 2, key[2] // 2
        return (level, row, column) if level < len(self._todo) and self._todo[level][row, column] else None

    def _quarters(self, key: Key) -> int:
        """How many children a tile has."""
        level, row, column = key
        below = self._store.levels[level - 1]
        return min(2, below.rows - 2 * row) * min(2, below.columns - 2 * column)

    def _children(self, key: Key) -> list[tuple[tuple[int, int], int]]:
        """(row, column) of a tile's children, and which quarter each of them is."""
        level, row, column = key
        below = self._store.levels[level - 1]
        grid = ((2 * row + y, 2 * column + x, 2 * y + x) for y in (0, 1) for x in (0, 1))
        return [((r, c), quarter) for r, c, quarter in grid if r < below.rows and c < below.columns]
