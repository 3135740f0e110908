"""A picture in a bucket, read where it is: of a shard its index, once, and then the tiles that somebody asks for.

    OUT.zarr/zarr.json, OUT.zarr/{level}/zarr.json     fetched when it is opened, into a folder that goes when it closes
    OUT.zarr.provenance/...                            fetched where tiles are to be checked: 32 bytes a tile
    OUT.zarr/{level}/c/0/{y}/{x}                       shards, of which parts are read

Memory: the tiles that are read, and the indices of MOST_INDICES shards, 4 KiB each.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from widefield.cluster.objects import Objects
from widefield.cluster.place import remote_url
from widefield.errors import BadRequest, StoreError
from widefield.store import Store, open_store
from widefield.store.base import Marks
from widefield.store.hashes import MANIFEST, PROVENANCE, provenance_path
from widefield.store.omezarr import Key, ZarrStore
from widefield.store.shards import ABSENT, Index, crc32c
from widefield.store.spec import level_sizes

MOST_INDICES = 1024


class FarPicture(ZarrStore):
    """Opened for reading; finished or not, written by others or not. Any thread may read. `name` is its URL, `path`
    where its small files are on this disk.

    BadRequest where there is none; StoreError for what is not ours, and when the bucket does not answer.
    """

    def __init__(self, url: str) -> None:
        folder, _, name = url.rpartition("/")
        if not name.lower().endswith(".zarr"):
            raise BadRequest(f"{url} is no .zarr; of a bucket nothing else is read; copy it to a disk")
        self.name, self._objects = url, Objects(folder)
        self._indices: OrderedDict[Key, Index] = OrderedDict()
        self._looking = threading.Lock()
        self._root = Path(tempfile.mkdtemp(prefix="widefield-"))
        try:
            self._look(self._root / name)
        except BaseException:
            self._let_go()
            raise

    def _look(self, path: Path) -> None:
        if not self._objects.fetch(f"{path.name}/zarr.json", path / "zarr.json"):
            raise BadRequest(f"{self.name} does not exist; wanted a picture; check where it is")
        spec = ZarrStore.found(path)
        assert spec is not None
        for level in range(len(level_sizes(spec.width_px, spec.height_px, spec.tile_px))):
            if not self._objects.fetch(f"{path.name}/{level}/zarr.json", path / str(level) / "zarr.json"):
                raise StoreError(f"{self.name} lacks level {level}; wanted all; let its run lay it out: start it again")
        super().__init__(path, spec, None)

    def fetch_provenance(self) -> None:
        """Have its manifest, and what every tile was, beside `path`. BadRequest where it is not finished."""
        folder = provenance_path(self.path)
        for name in PROVENANCE:
            self._objects.fetch(f"{folder.name}/{name}", folder / name)
        if not (folder / MANIFEST).is_file():
            raise BadRequest(f"{self.name} is no finished picture; wanted one; let its run end: start it again")

    def _fetch(self, level: int, row: int, column: int) -> bytes | None:
        key, chunk = self._place(level, row, column)
        index = self._index(key)
        if index is None:
            return None
        offset, length = (int(value) for value in index[chunk])
        return None if offset == ABSENT else self._objects.part(self._object(key), offset, length)

    def _index(self, key: Key) -> Index | None:
        """Where a shard's chunks are in it; None where there is no such shard yet. Shards never change."""
        with self._looking:
            if key in self._indices:
                self._indices.move_to_end(key)
                return self._indices[key]
        rows, columns = self.shards[key[0]]
        chunks = rows * columns
        table = self._objects.end(self._object(key), 16 * chunks + 4)
        if table is None:
            return None
        if len(table) != 16 * chunks + 4 or struct.pack("<I", crc32c(table[:-4])) != table[-4:]:
            raise StoreError(f"{self.name}: shard {key} is damaged; wanted a whole one; write the picture again")
        index: Index = np.frombuffer(table[:-4], "<u8").astype(np.uint64).reshape(chunks, 2)
        with self._looking:
            self._indices[key] = index
            while len(self._indices) > MOST_INDICES:
                self._indices.popitem(last=False)
        return index

    def _object(self, key: Key) -> str:
        return self.shard_path(key).relative_to(self._root).as_posix()

    def _scan(self, level: int) -> Marks:
        marks = np.zeros((self.levels[level].rows, self.levels[level].columns), np.bool_)
        folder = f"{self.path.name}/{level}/c/0"
        for name in self._objects.names(folder):
            row, _, column = name.removeprefix(folder + "/").partition("/")
            marks[self.extent((level, int(row), int(column)))] = True
        return marks

    def _let_go(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)


def open_picture(path: Path, *, finished: bool = False) -> Store:
    """A picture on this disk, or in a bucket, to read. `finished`: one in a bucket, with its provenance beside `path`.

    StoreError and BadRequest as `open_store` and FarPicture say.
    """
    url = remote_url(path)
    if url is None:
        return open_store(path)
    picture = FarPicture(url)
    try:
        if finished:
            picture.fetch_provenance()
    except BaseException:
        picture.close()
        raise
    return picture
