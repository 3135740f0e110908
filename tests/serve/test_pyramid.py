"""Deep Zoom's numbers are those of `vips dzsave`, and a level's tiles cover it once."""

import numpy as np
import pytest
import pyvips
from hypothesis import given
from hypothesis import strategies as st

from widefield.geometry import Region
from widefield.serve.pyramid import Pyramid

SIDES = st.integers(1, 3000)


@pytest.mark.parametrize("width, height", [(1, 1), (513, 70), (512, 512), (1300, 901), (37, 1025)])
def test_levels_and_tiles_are_those_of_libvips(width, height, tmp_path):
    pyvips.Image.black(width, height).dzsave(str(tmp_path / "out"), tile_size=256, overlap=0, suffix=".jpeg")
    pyramid = Pyramid(width, height, 256)
    depths = sorted(int(folder.name) for folder in (tmp_path / "out_files").glob("[0-9]*"))
    assert depths == list(range(pyramid.deepest + 1))
    for depth in depths:
        level = pyramid.deepest - depth
        found = {path.stem for path in (tmp_path / "out_files" / str(depth)).iterdir()}
        rows, columns = pyramid.grid(level)
        assert found == {f"{x}_{y}" for y in range(rows) for x in range(columns)}
        for path in (tmp_path / "out_files" / str(depth)).iterdir():
            x, y = map(int, path.stem.split("_"))
            tile, box = pyvips.Image.new_from_file(str(path)), pyramid.box(level, y, x)
            assert (tile.height, tile.width) == (box.height, box.width)


@given(SIDES, SIDES, st.sampled_from([16, 256, 512]), st.data())
def test_tiles_cover_a_level_once_and_a_region_is_under_its_tiles(width, height, tile, data):
    pyramid = Pyramid(width, height, tile)
    level = data.draw(st.integers(0, pyramid.deepest))
    high, wide = pyramid.size(level)
    covered = np.zeros((high, wide), int)
    for row, column in pyramid.tiles(Region(0, 0, high, wide)):
        covered[pyramid.box(level, row, column).slices] += 1
    assert (covered == 1).all()
    y, x = data.draw(st.integers(0, high - 1)), data.draw(st.integers(0, wide - 1))
    assert any(
        Region(y, x, y + 1, x + 1).within(pyramid.box(level, *at)) for at in pyramid.tiles(Region(y, x, high, wide))
    )


@pytest.mark.parametrize("place", [(-1, 0, 0), (12, 0, 0), (0, 6, 0), (0, 0, -1), (1, 0, 3)])
def test_what_is_not_there_is_an_index_error(place):
    with pytest.raises(IndexError):
        Pyramid(1300, 901, 256).box(*place)
