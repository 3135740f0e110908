"""The tiles of a picture, as Deep Zoom and IIIF number them. Integers only.

Level 0 is the picture, level k each side over 2**k, rounded up; the smallest is 1 x 1 px. Deep Zoom counts the other
way: depth = deepest - level. Tiles lie on a grid from the top left corner, without overlap, clipped at its edge.
"""

from __future__ import annotations

from dataclasses import dataclass

from widefield.geometry import Region


@dataclass(frozen=True, slots=True)
class Pyramid:
    """Sides in pixels."""

    width_px: int
    height_px: int
    tile_px: int

    @property
    def deepest(self) -> int:
        """Deep Zoom's number for level 0, and how many levels there are less one."""
        return (max(self.width_px, self.height_px) - 1).bit_length()

    def size(self, level: int) -> tuple[int, int]:
        """(height, width) of a level. IndexError for one that is not there."""
        if not 0 <= level <= self.deepest:
            raise IndexError(f"level {level} of a picture with levels 0 to {self.deepest}")
        over = 1 << level
        return -(-self.height_px // over), -(-self.width_px // over)

    def grid(self, level: int) -> tuple[int, int]:
        """(rows, columns) of a level's tiles."""
        height, width = self.size(level)
        return -(-height // self.tile_px), -(-width // self.tile_px)

    def box(self, level: int, row: int, column: int) -> Region:
        """Where a tile lies, in its level's pixels. IndexError for one that is not there."""
        rows, columns = self.grid(level)
        if not (0 <= row < rows and 0 <= column < columns):
            raise IndexError(f"tile {row},{column} of level {level}, which has {rows} x {columns}")
        height, width = self.size(level)
        y, x, tile = row * self.tile_px, column * self.tile_px, self.tile_px
        return Region(y, x, y + tile, x + tile).clipped(Region(0, 0, height, width))

    def tiles(self, region: Region) -> list[tuple[int, int]]:
        """(row, column) of the tiles under a region of a level's pixels, row by row."""
        tile = self.tile_px
        rows = range(region.y0 // tile, -(-region.y1 // tile))
        columns = range(region.x0 // tile, -(-region.x1 // tile))
        return [(row, column) for row in rows for column in columns]
