"""The fast box mean is the formula, for every shape and from every thread."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.pictures import picture, read_level, reference_pyramid, tile_of
from store.victims import ROOT
from widefield.store import PyramidWriter, StoreSpec, create_or_resume, open_store
from widefield.store.box import box, box_reference


@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_box_is_the_formula(height, width, seed):
    a = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    np.testing.assert_array_equal(box(a), reference_pyramid(a, 2)[1])
    np.testing.assert_array_equal(box_reference(a), reference_pyramid(a, 2)[1])


def test_box_rounds_every_sum_half_up():
    sums = np.arange(4 * 255 + 1)
    parts = np.stack([(sums + i) // 4 for i in range(4)], -1).astype(np.uint8)  # four values with each sum
    a = np.repeat(parts.reshape(-1, 2, 2).transpose(1, 0, 2).reshape(2, -1, 1), 3, axis=2)
    np.testing.assert_array_equal(box(a)[0, :, 1], (sums + 2) // 4)


def test_box_reads_views_and_fills_what_it_is_given():
    a = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    out = np.empty((20, 30, 3), np.uint8)
    assert box(a[10:50, 7:67], out=out) is out
    np.testing.assert_array_equal(out, box_reference(a[10:50, 7:67]))
    with pytest.raises(ValueError, match=r"\(h, w, 3\) uint8"):
        box(a[..., 0])


@pytest.mark.parametrize(("height", "width"), [(512, 512), (511, 300), (37, 512), (1, 1)])
def test_box_fills_its_place_in_a_larger_picture_and_no_more(height, width):
    """In several strips, where the picture is as large as a tile."""
    a = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    canvas = np.full((512, 512, 3), 77, np.uint8)
    half = box_reference(a)
    place = (slice(256, 256 + half.shape[0]), slice(200, 200 + half.shape[1]))
    box(a, out=canvas[place])
    np.testing.assert_array_equal(canvas[place], half)
    canvas[place] = 77
    assert (canvas == 77).all()


def test_a_half_made_elsewhere_is_taken_as_it_is(tmp_path):
    image = picture(333, 290)
    with create_or_resume(tmp_path / "out.tif", StoreSpec(333, 290, "5eed", codec="deflate", tile_px=64)) as store:
        with pytest.raises(ValueError, match=r"half of tile 4,5 is uint8 \(17, 7, 3\)"), PyramidWriter(store) as writer:
            writer.put(4, 5, tile_of(image, 64, 4, 5), half=np.zeros((17, 6, 3), np.uint8))
        with PyramidWriter(store) as writer:
            for row, column in writer.missing():
                tile = tile_of(image, 64, row, column)
                writer.put(row, column, tile, half=box_reference(tile))
    with open_store(tmp_path / "out.tif") as store:
        for level, want in enumerate(reference_pyramid(image, len(store.levels))):
            np.testing.assert_array_equal(read_level(store, level), want)


def test_threads_do_not_share_scratch_memory():
    pictures = [np.full((256, 256, 3), value, np.uint8) for value in range(50)]
    with ThreadPoolExecutor(4) as pool:
        for value, half in enumerate(pool.map(box, pictures)):
            assert (half == value).all()


def test_importing_the_store_imports_neither_zarr_nor_imagecodecs():
    code = "import sys, widefield.store; print({'zarr', 'imagecodecs', 'google_crc32c'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "runtime", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
