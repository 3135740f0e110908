"""The BigTIFF: its layout, the limits it does not have, and heads that somebody damaged."""

import itertools
import os
import resource
import time
from dataclasses import replace

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from store.contract import StoreContract
from store.pictures import fill, picture
from widefield.errors import StoreError
from widefield.store import StoreSpec, codecs, create_or_resume, default_codec, level_sizes, open_store
from widefield.store.tiff import TiffStore
from widefield.store.tiff_layout import plan_tiff

HUGE = 524_288
PORTABLE = ("jpeg", "deflate")


class TestTiff(StoreContract):
    suffix = ".tif"


class TestTiffZstd(StoreContract):
    suffix = ".tiff"

    def spec(self, *args, codec="zstd", **kwargs):
        return super().spec(*args, codec=codec, **kwargs)


def tables_of(width: int, height: int, codec: str, tile: int = 512):
    """(position, bytes, whether it lies outside of the directories) of every table: offsets and counts in turn."""
    spec = StoreSpec(width, height, "5eed", codec=codec, tile_px=tile)
    layout = plan_tiff(spec, level_sizes(width, height, tile))
    for table, level in zip(layout.tables, level_sizes(width, height, tile), strict=True):
        tiles = level.rows * level.columns
        yield table.offsets_at, 8 * tiles, tiles > 1
        yield table.counts_at, 4 * tiles, tiles > 2


@pytest.mark.parametrize("codec", TiffStore.codecs)
@pytest.mark.parametrize("size", [(1, 1), (513, 512), (1300, 700), (16384, 8192), (65536, 65536), (HUGE, HUGE)])
def test_no_table_ends_on_1024_bytes_and_offsets_lie_on_8(size, codec):
    for turn, (position, nbytes, outside) in enumerate(tables_of(*size, codec)):
        assert not outside or (position + nbytes) % 1024
        assert turn % 2 or position % 8 == 0


def test_no_two_parts_of_a_layout_share_a_byte():
    spec = StoreSpec(70_000, 3_000, "5eed")
    layout = plan_tiff(spec, level_sizes(70_000, 3_000, 512))
    parts = sorted((at, at + nbytes) for at, nbytes, outside in tables_of(70_000, 3_000, "jpeg") if outside)
    parts = [(0, len(layout.head)), *parts, (layout.data_at, layout.data_at + 1)]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(parts))


def test_a_524288_px_file_is_made_in_a_second_and_a_few_megabytes(tmp_path):
    codecs.encode("jpeg", np.zeros((16, 16, 3), np.uint8), 90)  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    create_or_resume(tmp_path / "out.tif", StoreSpec(HUGE, HUGE, "5eed")).close()
    assert time.perf_counter() - start < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 << 10  # KiB
    assert (tmp_path / "out.tif").stat().st_size < 17 << 20


def test_offsets_past_4_gib_are_kept_whole(tmp_path):
    """TIFF's own 4 GB limit: BigTIFF has none. The file is sparse, so the test is not large."""
    path, tile = tmp_path / "out.tif", picture(512, 512)
    with create_or_resume(path, StoreSpec(2000, 2000, "5eed", codec="deflate")) as store:
        store._end = (1 << 32) + 2
        store.write(0, 1, 2, tile)
        assert path.stat().st_size > 1 << 32
    with open_store(path) as store:
        np.testing.assert_array_equal(store.read(0, 1, 2), tile)
    with tifffile.TiffFile(path) as file:
        np.testing.assert_array_equal(file.pages[0].asarray()[512:1024, 1024:1536], tile)
    assert pyvips.Image.new_from_file(str(path)).crop(1024, 512, 512, 512).numpy().tobytes() == tile.tobytes()


def test_pixel_positions_past_2_to_the_31_are_not_folded(tmp_path):
    """int32 indexing: the last tile of 524,288 x 524,288 px begins at pixel 2**38 - 2**28."""
    with create_or_resume(tmp_path / "out.tif", StoreSpec(HUGE, HUGE, "5eed", codec="deflate")) as store:
        last = picture(512, 512, seed=7)
        store.write(0, 1023, 1023, last)
        assert np.argwhere(store.done(0)).tolist() == [[1023, 1023]]
    with open_store(tmp_path / "out.tif") as store:
        assert np.argwhere(store.done(0)).tolist() == [[1023, 1023]]
        np.testing.assert_array_equal(store.read(0, 1023, 1023), last)


@pytest.mark.parametrize("side", [16_384, 65_536, 300_001])
def test_sides_past_what_webp_jpeg_and_photoshop_hold_are_taken(tmp_path, side):
    for width, height in ((side, 5), (5, side)):
        with create_or_resume(tmp_path / f"{width}.tif", StoreSpec(width, height, "5eed")) as store:
            store.write(0, store.levels[0].rows - 1, store.levels[0].columns - 1, np.zeros((512, 512, 3), np.uint8))
        image = pyvips.Image.new_from_file(str(tmp_path / f"{width}.tif"))
        assert (image.width, image.height) == (width, height)


def test_a_new_byte_count_with_the_old_offset_is_still_a_whole_blank_tile(tmp_path):
    """The instant between the two writes: a reader gets the blank tile and zeros, never part of it."""
    for codec in TiffStore.codecs:
        path = tmp_path / f"{codec}.tif"
        with create_or_resume(path, StoreSpec(64, 64, "5eed", codec=codec, tile_px=64)) as store:
            data = store.encode(0, 0, 0, np.full((64, 64, 3), 255, np.uint8))
            table = store._layout.tables[0]
            os.pwrite(store._fd, len(data).to_bytes(4, "little"), table.counts_at)
            assert not store._scan(0).any()
            for image in (
                tifffile.imread(path),
                pyvips.Image.new_from_file(str(path)).numpy() if codec in PORTABLE else 0,
            ):
                assert not np.any(image)


@pytest.mark.parametrize("nbytes", [8, 16, 100, 700, 1500])
def test_a_truncated_head_is_a_store_error(tmp_path, nbytes):
    path = tmp_path / "out.tif"
    create_or_resume(path, StoreSpec(3000, 2000, "5eed")).close()
    path.write_bytes(path.read_bytes()[:nbytes])
    for attempt in (lambda: open_store(path), lambda: create_or_resume(path, StoreSpec(3000, 2000, "5eed"))):
        with pytest.raises(StoreError, match=r"not written by widefield|is damaged"):
            attempt()
    assert path.stat().st_size == nbytes


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_corrupt_head_is_a_store_error_or_still_true(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("corrupt") / "out.tif"
    spec = StoreSpec(3000, 2000, "5eed")
    create_or_resume(path, spec).close()
    head = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, 2600))
    head[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(head)
    try:
        with create_or_resume(path, spec) as store:
            assert store.spec.fingerprint == "5eed" and not store.done(0).any()
    except StoreError:
        assert path.read_bytes() == bytes(head)


def test_a_file_cut_behind_its_tables_is_a_store_error(tmp_path):
    path, image = tmp_path / "out.tif", picture(300, 200)
    with create_or_resume(path, StoreSpec(300, 200, "5eed", tile_px=64)) as store:
        fill(store, image)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(StoreError, match="is damaged"):
        create_or_resume(path, StoreSpec(300, 200, "5eed", tile_px=64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": "webp"}, "codec 'webp' found; .tif takes jpeg, deflate"),
        ({"width_px": 0}, "found size 0x5 px"),
        ({"tile_px": 500}, "tile_px 500; wanted a multiple of 16"),
        ({"width_px": 10**7, "height_px": 10**7, "tile_px": 512}, "wanted at most 67108864 tiles"),
        ({"quality": 101}, "quality 101"),
        ({"fingerprint": ""}, "empty fingerprint"),
    ],
)
def test_a_spec_that_no_file_can_hold_is_refused(tmp_path, change, message):
    with pytest.raises(StoreError, match=message):
        create_or_resume(tmp_path / "out.tif", replace(StoreSpec(5, 5, "5eed"), **change))
    assert not list(tmp_path.iterdir())


def test_suffixes_choose_the_form_and_its_codec(tmp_path):
    assert [default_codec(tmp_path / f"a{s}") for s in (".tif", ".zarr", ".dzi", ".png")] == [
        "jpeg",
        "zstd",
        "jpeg",
        "png",
    ]
    assert default_codec(tmp_path / "a.TIF", lossless=True) == "deflate"
    with pytest.raises(StoreError, match=r"no form is called '.bmp'; there are .tif"):
        create_or_resume(tmp_path / "out.bmp", StoreSpec(5, 5, "5eed"))
