"""How a picture falls into tiles, blocks and store tiles.

A block is a whole number of store tiles and the tiles of the plan start anew in it, so every store tile is made by one
worker, whatever the plan; blocks go in Morton order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from widefield.geometry import Region, morton_order

LARGEST_BLOCK_PX = 4096


@dataclass(frozen=True, slots=True)
class Grid:
    """How a picture of (height, width) cells falls into tiles, blocks and store tiles.

    Its pixels are those of the cells, or the first `size_px` (rows, columns) of them.
    """

    height: int
    width: int
    scale: int
    tile: tuple[int, int]
    store_tile_px: int
    size_px: tuple[int, int] | None = None

    @property
    def pixels(self) -> Region:
        """All of the picture's."""
        rows, columns = self.size_px or (self.height * self.scale, self.width * self.scale)
        return Region(0, 0, rows, columns)

    @property
    def block(self) -> tuple[int, int]:
        """Cells of a block: whole store tiles, whole tiles too where that is not too large."""
        return tuple(self._block_side(side) for side in self.tile)  # type: ignore[return-value]

    def _block_side(self, tile: int) -> int:
        unit = math.lcm(self.store_tile_px, self.scale) // self.scale
        both = math.lcm(unit, tile)
        return both if both * self.scale <= LARGEST_BLOCK_PX else -(-tile // unit) * unit

    @property
    def picture(self) -> Region:
        return Region(0, 0, self.height, self.width)

    def blocks(self) -> Iterator[Region]:
        """In Morton order, clipped to the picture."""
        rows, columns = self.block
        for y, x in morton_order(-(-self.height // rows), -(-self.width // columns)):
            yield Region(y * rows, x * columns, (y + 1) * rows, (x + 1) * columns).clipped(self.picture)

    def tiles(self, block: Region) -> Iterator[Region]:
        """The tiles that start in a block, full size: the last may reach past the block or the picture."""
        rows, columns = self.tile
        for y in range(block.y0, block.y1, rows):
            for x in range(block.x0, block.x1, columns):
                yield Region(y, x, y + rows, x + columns)

    def store_tiles(self, block: Region) -> Iterator[tuple[tuple[int, int], Region]]:
        """((row, column), its pixels) of the store tiles that a block holds."""
        side = self.store_tile_px
        pixels = block.scaled(self.scale).clipped(self.pixels)
        for y in range(pixels.y0, pixels.y1, side):
            for x in range(pixels.x0, pixels.x1, side):
                yield (y // side, x // side), Region(y, x, y + side, x + side).clipped(pixels)

    def kept(self, tile: Region) -> Region:
        """The part of a tile that the picture takes: clipped to its block."""
        rows, columns = self.block
        top, left = tile.y0 // rows * rows, tile.x0 // columns * columns
        return tile.clipped(Region(top, left, top + rows, left + columns)).clipped(self.picture)

    def tile_of(self, y: int, x: int) -> Region:
        """The tile that makes the cell at (y, x)."""
        rows, columns = self.block
        tile_rows, tile_columns = self.tile
        top, left = y // rows * rows, x // columns * columns
        top += (y - top) // tile_rows * tile_rows
        left += (x - left) // tile_columns * tile_columns
        return Region(top, left, top + tile_rows, left + tile_columns)
