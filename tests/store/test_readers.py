"""Our files in software that is not ours: every level, finished and unfinished, small and 524,288 px wide."""

import json
import warnings
from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import pytest
import pyvips
import rasterio
import tifffile
import zarr
from ome_zarr_models.v05.image import Image as OmeImage

from store.pictures import fill, picture, reference_pyramid, tile_of
from widefield.store import StoreSpec, create_or_resume, open_store
from widefield.store.spec import level_sizes

WIDTH, HEIGHT, TILE = 701, 437, 64
HUGE = 524_288
BLANK = 0


def by_tifffile(path: Path) -> list[np.ndarray]:
    with tifffile.TiffFile(path) as file:
        assert len(file.series[0].levels) == len(file.pages)
        return [page.asarray() for page in file.pages]


def by_vips(path: Path) -> list[np.ndarray]:
    count = pyvips.Image.new_from_file(str(path)).get("n-pages")
    return [pyvips.Image.new_from_file(str(path), page=page).numpy() for page in range(count)]


def by_rasterio(path: Path) -> list[np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            factors = file.overviews(1)
        levels = [rasterio.open(path).read()]
        for level in range(len(factors)):
            with rasterio.open(path, overview_level=level) as file:
                levels.append(file.read())
    return [np.moveaxis(level, 0, -1) for level in levels]


def by_openslide(path: Path) -> list[np.ndarray]:
    with openslide.OpenSlide(path) as slide:
        count, sizes = slide.level_count, slide.level_dimensions
        return [np.asarray(slide.read_region((0, 0), k, sizes[k]).convert("RGB")) for k in range(count)]


def by_pillow(path: Path) -> list[np.ndarray]:
    levels = []
    with PIL.Image.open(path) as image:
        for frame in range(image.n_frames):
            image.seek(frame)
            levels.append(np.asarray(image.convert("RGB")))
    return levels


READERS = {
    "tifffile": by_tifffile,
    "vips": by_vips,
    "rasterio": by_rasterio,
    "openslide": by_openslide,
    "pillow": by_pillow,
}


def written(path: Path, codec: str, *, count: int | None = None) -> tuple[np.ndarray, list]:
    image = picture(WIDTH, HEIGHT)
    if codec == "jpeg":  # grey: readers upsample chroma in their own ways, of luma there is one
        image = np.repeat(image[..., :1], 3, axis=2)
    with create_or_resume(path, StoreSpec(WIDTH, HEIGHT, "5eed", codec=codec, tile_px=TILE)) as store:
        return image, fill(store, image, count=count)


@pytest.mark.parametrize("count", [None, 30], ids=["finished", "unfinished"])
@pytest.mark.parametrize("codec", ["jpeg", "deflate"])
@pytest.mark.parametrize("reader", READERS)
def test_every_level_of_a_tif_in(reader, codec, count, tmp_path):
    path = tmp_path / "out.tif"
    written(path, codec, count=count)
    levels = READERS[reader](path)
    with open_store(path) as store:
        assert [level.shape[:2] for level in levels] == [(it.height_px, it.width_px) for it in store.levels]
        for level, whole in enumerate(levels):
            for row, column in np.ndindex(store.levels[level].rows, store.levels[level].columns):
                got = tile_of(whole, TILE, row, column).astype(int)
                want = store.read(level, row, column) if store.done(level)[row, column] else np.full_like(got, BLANK)
                error = np.abs(got - want)
                assert error.max() <= (codec == "jpeg"), (reader, level, row, column)


def test_zstd_in_a_tif_is_exact_where_the_reader_has_zstd(tmp_path):
    image, _ = written(tmp_path / "out.tif", "zstd")
    want = reference_pyramid(image, 5)
    for reader in (by_tifffile, by_rasterio):
        for got, level in zip(reader(tmp_path / "out.tif"), want, strict=True):
            np.testing.assert_array_equal(got, level)


def test_jpeg_xl_in_a_tif_is_exact_in_tifffile(tmp_path):
    image, _ = written(tmp_path / "out.tif", "jpegxl")
    for got, level in zip(by_tifffile(tmp_path / "out.tif"), reference_pyramid(image, 5), strict=True):
        np.testing.assert_array_equal(got, level)


@pytest.fixture(scope="module", params=["jpeg", "deflate"])
def huge(request, tmp_path_factory):
    """524,288 x 524,288 px with one tile in the middle of level 0 and another at the end."""
    path = tmp_path_factory.mktemp("huge") / "out.tif"
    tile = np.repeat(picture(512, 512)[..., :1], 3, axis=2)
    with create_or_resume(path, StoreSpec(HUGE, HUGE, "5eed", codec=request.param)) as store:
        for row, column in ((512, 513), (1023, 1023)):
            store.write(0, row, column, tile)
        want = store.read(0, 512, 513)
    yield path, want, request.param
    path.unlink()


CENTRE = (512 * 512, 513 * 512)


def one_tile(reader: str, path: Path) -> tuple[int, np.ndarray]:
    """How many levels a reader finds, and the tile at `CENTRE`."""
    y, x = CENTRE
    match reader:
        case "tifffile":
            with tifffile.TiffFile(path) as file, tifffile.imread(path, aszarr=True, level=0) as store:
                whole = zarr.open_array(store, mode="r")
                return len(file.series[0].levels), whole[y : y + 512, x : x + 512]
        case "vips":
            image = pyvips.Image.new_from_file(str(path))
            return image.get("n-pages"), image.crop(x, y, 512, 512).numpy()
        case "rasterio":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                with rasterio.open(path) as file:
                    window = rasterio.windows.Window(x, y, 512, 512)
                    return len(file.overviews(1)) + 1, np.moveaxis(file.read(window=window), 0, -1)
        case _:
            with openslide.OpenSlide(path) as slide:
                return slide.level_count, np.asarray(slide.read_region((x, y), 0, (512, 512)).convert("RGB"))


@pytest.mark.parametrize("reader", ["tifffile", "vips", "rasterio", "openslide"])
def test_a_524288_px_tif_in(reader, huge):
    path, want, codec = huge
    levels, got = one_tile(reader, path)
    assert levels == 11
    assert np.abs(got.astype(int) - want).max() <= (codec == "jpeg")


def test_a_524288_px_tif_in_pillow_whose_bomb_limit_is_178956970_px(huge, monkeypatch):
    with pytest.raises(PIL.Image.DecompressionBombError, match="178956970 pixels"):
        PIL.Image.open(huge[0])
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    with PIL.Image.open(huge[0]) as image:
        assert image.size == (HUGE, HUGE) and image.n_frames == 11
        image.seek(10)
        assert image.size == (512, 512)


def test_a_tif_says_that_a_model_made_it(tmp_path):
    written(tmp_path / "out.tif", "jpeg", count=1)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        tags = file.pages[0].tags
        assert b"digitalsourcetype/trainedAlgorithmicMedia" in tags[700].value
        assert tags["Software"].value == "Widefield"
        assert json.loads(tags["ImageDescription"].value)["fingerprint"] == "5eed"


@pytest.mark.parametrize("count", [None, 30], ids=["finished", "unfinished"])
def test_a_zarr_in_zarr_python_and_ome_zarr_models(tmp_path, count, monkeypatch):
    monkeypatch.setattr("widefield.store.omezarr.SHARD_PX", 256)
    image, order = written(tmp_path / "out.zarr", "zstd", count=count)
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    model = OmeImage.from_zarr(group)
    paths = [dataset.path for dataset in model.attributes.ome.multiscales[0].datasets]
    for path, want in zip(paths, reference_pyramid(image, 5), strict=True):
        got = np.moveaxis(group[path][:], 0, -1)
        if count is None:
            np.testing.assert_array_equal(got, want)
        elif path == "0":  # a shard of 4 x 4 tiles is there whole, or not at all
            np.testing.assert_array_equal(got[:256, :256], want[:256, :256])
            assert set(order[:16]) == {(row, column) for row in range(4) for column in range(4)}
            assert not got[:256, 512:].any()
    assert group["0"].shards == (3, 256, 256) and group["0"].chunks == (3, 64, 64)
    assert "trainedAlgorithmicMedia" in group.attrs["digitalSourceType"]


def test_a_524288_px_zarr_is_made_at_once_and_has_shards_of_8192_px(tmp_path):
    with create_or_resume(tmp_path / "out.zarr", StoreSpec(HUGE, HUGE, "5eed", codec="zstd")) as store:
        assert len(store.levels) == 11
    array = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")
    assert array.shards == (3, 8192, 8192) and not array[:, HUGE - 512 :, HUGE - 512 :].any()


@pytest.mark.parametrize(("width", "height"), [(1300, 700), (513, 512), (1, 1500), (300, 200), (1024, 512)])
def test_a_dzi_has_the_names_and_sizes_of_vips_dzsave(tmp_path, width, height):
    image = picture(width, height)
    with create_or_resume(tmp_path / "ours.dzi", StoreSpec(width, height, "5eed", codec="jpeg")) as store:
        fill(store, image)
    pyvips.Image.new_from_array(image).dzsave(str(tmp_path / "theirs"), tile_size=512, overlap=0)
    tiles = {}
    for name in ("ours", "theirs"):
        folder = tmp_path / f"{name}_files"
        tiles[name] = {str(p.relative_to(folder)): pyvips.Image.new_from_file(str(p)) for p in folder.rglob("*.jpeg")}
    assert {k: (v.width, v.height) for k, v in tiles["ours"].items()} == {
        k: (v.width, v.height) for k, v in tiles["theirs"].items()
    }
    ours, theirs = ((tmp_path / f"{name}.dzi").read_text().replace(">", " ").replace("/", " ") for name in tiles)
    assert sorted(ours.split()) == sorted(theirs.split())


def test_a_png_in_pillow(tmp_path):
    image, _ = written(tmp_path / "out.png", "png")
    with PIL.Image.open(tmp_path / "out.png") as file:
        np.testing.assert_array_equal(np.asarray(file), image)
        assert "trainedAlgorithmicMedia" in str(file.info["XML:com.adobe.xmp"])
        assert json.loads(file.text["widefield"])["fingerprint"] == "5eed"


@pytest.mark.parametrize("suffix", [".tif", ".dzi"])
def test_jpeg_levels_are_encoded_once_from_exact_pixels(tmp_path, suffix):
    """Each level is encode(box(original)); rebuilding it from decoded children would lose a generation a level."""
    from imagecodecs import jpeg8_decode, jpeg8_encode

    path, image = tmp_path / f"out{suffix}", picture(WIDTH, HEIGHT)
    with create_or_resume(path, StoreSpec(WIDTH, HEIGHT, "5eed", tile_px=TILE)) as store:
        fill(store, image, threads=2)
    with open_store(path) as store:
        for level, whole in enumerate(reference_pyramid(image, len(store.levels))):
            for row, column in np.ndindex(store.levels[level].rows, store.levels[level].columns):
                want = tile_of(whole, TILE, row, column)
                height, width, _ = want.shape
                if suffix == ".tif":
                    want = np.pad(want, ((0, TILE - height), (0, TILE - width), (0, 0)), mode="edge")
                want = jpeg8_decode(jpeg8_encode(np.ascontiguousarray(want), level=90, subsampling="420"))
                np.testing.assert_array_equal(store.read(level, row, column), want[:height, :width])


def test_levels_halve_and_round_up():
    assert [(it.width_px, it.height_px) for it in level_sizes(1300, 700, 512)] == [(1300, 700), (650, 350), (325, 175)]
    assert level_sizes(HUGE, HUGE, 512)[0].columns == 1024 and len(level_sizes(HUGE, HUGE, 512)) == 11
