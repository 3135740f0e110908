"""A .npy file read run by run of its rows, with pread: pages of a memory map would count as ours."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from widefield.errors import BadLatents, first_line
from widefield.geometry import Region

CHUNK_NBYTES = 1 << 20
SAVING = "save them with numpy.save(path, latents[0].float().cpu().numpy())"
_GAP_NBYTES = 1 << 15  # reading this much for nothing costs as much as another call


class NpyFile:
    """A .npy file as `planes` of (rows, columns), C order, read with pread. `columns` may be several values wide.

    `shape`, `dtype`: as in its header. BadLatents when it is not a .npy file or its length is not what the header says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as cause:
            raise BadLatents(f"{path}: {cause.strerror}; wanted to read it; check its permissions") from cause
        weakref.finalize(self, os.close, self._fd)
        self.shape, fortran, self.dtype, self._data_at = self._header()
        if fortran:
            raise BadLatents(f"{path} is in Fortran order; wanted C order; save numpy.ascontiguousarray(array)")
        found, values = os.fstat(self._fd).st_size, math.prod(self.shape)
        wanted = self._data_at + values * self.itemsize
        if found != wanted:
            state = "truncated" if found < wanted else "too long"
            raise BadLatents(
                f"{path} is {state}: {found} bytes; wanted {wanted} for {self.dtype} {self.shape}; write it again"
            )

    @property
    def itemsize(self) -> int:
        return int(self.dtype.itemsize)

    def _header(self) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        try:
            with os.fdopen(os.dup(self._fd), "rb") as file:
                match npy.read_magic(file):
                    case (1, 0):
                        shape, fortran, dtype = npy.read_array_header_1_0(file)
                    case (2, 0):
                        shape, fortran, dtype = npy.read_array_header_2_0(file)
                    case version:
                        raise ValueError(f"version {version}")
                if dtype.hasobject:
                    raise ValueError("Python objects")
                return shape, fortran, dtype, file.tell()
        except Exception as cause:  # numpy raises whatever its parser meets
            raise BadLatents(
                f"{self.path} is no .npy file ({first_line(cause)}); wanted a plain array; {SAVING}"
            ) from cause

    def read(self, plane: int, region: Region, rows: int, columns: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first row, values) for runs of rows of `region` in one plane of rows x columns values, top to bottom.

        One pread a run: several rows where the gap between them is small, else one row.
        """
        row_nbytes, span = columns * self.itemsize, region.width * self.itemsize
        together = max(1, CHUNK_NBYTES // row_nbytes) if row_nbytes - span <= _GAP_NBYTES else 1
        for y in range(region.y0, region.y1, together):
            count = min(together, region.y1 - y)
            at = self._data_at + ((plane * rows + y) * columns + region.x0) * self.itemsize
            data = self._pread((count - 1) * row_nbytes + span, at)
            yield y, np.ndarray((count, region.width), self.dtype, data, strides=(row_nbytes, self.itemsize))

    def _pread(self, nbytes: int, at: int) -> bytes:
        try:
            data = os.pread(self._fd, nbytes, at)
            while len(data) < nbytes:  # one call gives at most 2 GiB
                more = os.pread(self._fd, nbytes - len(data), at + len(data))
                if not more:
                    raise BadLatents(f"{self.path} ends before byte {at + nbytes}; wanted all of it; write it again")
                data += more
        except OSError as cause:
            raise BadLatents(f"{self.path}: {cause.strerror}; wanted {nbytes} bytes at {at}; check the disk") from cause
        return data
