"""Region reads of every kind of picture against plain slicing of what other people's decoders see."""

import io
import os
import struct
import threading
import zlib
from fractions import Fraction

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from widefield.errors import BadLatents
from widefield.geometry import Region
from widefield.images import edge_padded, open_image, to_rgb8
from widefield.store import PyramidWriter, StoreSpec, create_or_resume

relaxed = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def picture(height=37, width=53, channels=3, dtype=np.uint8) -> np.ndarray:
    """Smooth and coloured, so that JPEG keeps it and a swapped axis or channel shows."""
    y, x = np.mgrid[:height, :width]
    planes = [x * 4, y * 6, 255 - x * 2 - y, 128 + x][:channels]
    values = np.clip(np.stack(planes, -1), 0, 255)
    return (values * (257 if dtype == np.uint16 else 1)).astype(dtype)


def whole(source) -> np.ndarray:
    return source.read(Region(0, 0, source.height, source.width))


@st.composite
def regions(draw, height=37, width=53):
    y0, x0 = draw(st.integers(0, height)), draw(st.integers(0, width))
    return Region(y0, x0, draw(st.integers(y0, height)), draw(st.integers(x0, width)))


def stored(path, image: np.ndarray, tile_px=16, **options):
    height, width, _ = image.shape
    spec = StoreSpec(width, height, "f" * 8, codec="lossless", tile_px=tile_px, **options)
    with create_or_resume(path, spec) as store:
        writer = PyramidWriter(store, threads=1)
        for row, column in writer.missing():
            y, x = row * tile_px, column * tile_px
            writer.put(row, column, image[y : y + tile_px, x : x + tile_px])
        writer.close()
    return path


@pytest.mark.parametrize("suffix", [".png", ".webp", ".npy", ".tif", ".foreign.tif", ".zarr", ".dzi", "array"])
def test_a_region_is_the_slice(tmp_path, suffix):
    image, path = picture(), tmp_path / f"a{suffix}"
    match suffix:
        case ".npy":
            np.save(path, image)
        case ".foreign.tif":
            tifffile.imwrite(path, image, tile=(16, 16), photometric="rgb")
        case ".png" | ".webp":
            Image.fromarray(image).save(path, lossless=True)
        case "array":
            path = image
        case _:
            stored(path, image)
    source = open_image(path)
    assert (source.height, source.width) == (37, 53)

    @relaxed
    @given(region=regions())
    def check(region):
        got = source.read(region)
        assert got.dtype == np.uint8
        assert got.flags.writeable
        np.testing.assert_array_equal(got, image[region.slices])

    check()


@relaxed
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    multiple=st.sampled_from([1, 4, 7, 32]),
    data=st.data(),
)
def test_edges_are_repeated_up_to_a_multiple(shape, multiple, data):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    source = edge_padded(open_image(image), multiple)
    below, right = -shape[0] % multiple, -shape[1] % multiple
    wanted = np.pad(image, ((0, below), (0, right), (0, 0)), mode="edge")
    assert (source.height, source.width) == wanted.shape[:2]
    region = data.draw(regions(*wanted.shape[:2]))
    np.testing.assert_array_equal(source.read(region), wanted[region.slices])


def test_padding_changes_the_digest_only_where_it_pads():
    image = picture()
    digests = [edge_padded(open_image(image), m).digest() for m in (1, 4, 16)]
    assert digests[0] == open_image(image).digest()
    assert len(set(digests)) == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (37, 53)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg(tmp_path, size, options):
    image = picture(*size)
    Image.fromarray(image).save(tmp_path / "a.JPG", quality=95, **options)
    source = open_image(tmp_path / "a.JPG")
    assert (source.height, source.width) == size
    theirs = np.asarray(Image.open(tmp_path / "a.JPG").convert("RGB")).astype(int)
    assert np.abs(whole(source) - theirs).max() <= 2  # the two libraries may upsample chroma by other kernels
    assert np.abs(whole(source) - image.astype(int)).mean() < 6


def test_a_long_segment_before_the_size_of_a_jpeg(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.jpeg", icc_profile=bytes(300_000))
    assert whole(open_image(tmp_path / "a.jpeg")).shape == (37, 53, 3)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exact": True, "lossless": True, "alpha": True}])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (37, 53)])
def test_webp(tmp_path, options, size):
    image = picture(*size, channels=4 if options.get("alpha") else 3)
    Image.fromarray(image).save(tmp_path / "a.webp", **options)
    source = open_image(tmp_path / "a.webp")
    assert (source.height, source.width) == size
    theirs = np.asarray(Image.open(tmp_path / "a.webp").convert("RGBA"))[..., :3].astype(int)
    assert np.abs(whole(source) - theirs).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(picture()).convert(mode)
    image.save(tmp_path / "a.png")
    wanted = np.asarray(image.convert("RGBA"))[..., :3]
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.png")), wanted)


def test_alpha_is_dropped_and_nothing_put_under_it(tmp_path):
    image = picture(channels=4)
    image[..., 3] = 0
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.png")), image[..., :3])


def png(width: int, height: int, depth: int, kind: int, rows: bytes) -> bytes:
    """A PNG by the book: `rows` with a filter byte before each."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    pieces = [
        struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in (*chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_few_bits_is_scaled(tmp_path, depth):
    (tmp_path / "a.png").write_bytes(png(2, 1, depth, 0, bytes([0, (2**depth - 1) << (8 - depth)])))
    assert whole(open_image(tmp_path / "a.png"))[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_png_of_sixteen_bits(tmp_path, kind, channels):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png(7, 5, 16, kind, rows))
    np.testing.assert_array_equal(whole(open_image(tmp_path / "a.png")), to_rgb8(values.astype(np.uint16), "x"))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_are_scaled_exactly(order):
    values = np.arange(65536).astype(order).reshape(256, 256)
    wanted = [round(Fraction(v * 255, 65535)) for v in range(65536)]
    got = to_rgb8(values, "x")
    assert got[..., 0].ravel().tolist() == got[..., 2].ravel().tolist() == wanted


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_npy_of_every_shape(tmp_path, dtype, channels):
    shape = (37, 53) if channels is None else (37, 53, channels)
    image = np.random.default_rng(0).integers(0, 256 if dtype == "u1" else 65536, shape).astype(dtype)
    np.save(tmp_path / "a.npy", image)
    source = open_image(tmp_path / "a.npy")
    np.testing.assert_array_equal(whole(source), to_rgb8(image, "x"))
    region = Region(3, 5, 29, 31)
    np.testing.assert_array_equal(source.read(region), to_rgb8(image, "x")[region.slices])
    assert source.nbytes == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bigtiff": True, "byteorder": ">"},
        {"byteorder": ">", "compression": "lzw", "predictor": True},
        {"compression": "deflate", "tile": (16, 32)},
        {"planarconfig": "separate"},
        {"rowsperstrip": 5},
        {"dtype": np.uint16},
        {"channels": 1, "photometric": "minisblack"},
        {"channels": 4, "extrasamples": ["unassalpha"]},
    ],
)
def test_other_peoples_tiffs(tmp_path, options):
    image = picture(channels=options.pop("channels", 3), dtype=options.pop("dtype", np.uint8)).squeeze()
    written = np.moveaxis(image, -1, 0) if options.get("planarconfig") else image
    tifffile.imwrite(tmp_path / "a.tif", written, **({"photometric": "rgb"} | options))
    source = open_image(tmp_path / "a.tif")
    assert (source.height, source.width, source.nbytes) == (37, 53, 37 * 53 * 3)
    np.testing.assert_array_equal(whole(source), to_rgb8(image, "x"))


def test_a_jpeg_tiff(tmp_path):
    image = picture(64, 96)
    Image.fromarray(image).save(tmp_path / "a.tiff", compression="jpeg", quality=95)
    assert np.abs(whole(open_image(tmp_path / "a.tiff")).astype(int) - image).mean() < 3


@pytest.mark.parametrize("suffix", [".tif", ".zarr", ".dzi"])
def test_digest_of_a_store_is_of_its_fingerprint(tmp_path, suffix):
    first = open_image(stored(tmp_path / f"a{suffix}", picture())).digest()
    assert first == open_image(stored(tmp_path / f"b{suffix}", picture())).digest()
    assert first != open_image(stored(tmp_path / f"c{suffix}", picture(), tile_px=32)).digest()


def test_digest_of_a_file_is_of_its_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(picture()).save(tmp_path / name)
    assert open_image(tmp_path / "a.png").digest() == open_image(tmp_path / "b.png").digest()
    Image.fromarray(picture()[::-1]).save(tmp_path / "b.png")
    assert open_image(tmp_path / "a.png").digest() != open_image(tmp_path / "b.png").digest()
    assert open_image(picture()).digest() != open_image(picture()[::-1]).digest()


def test_nothing_is_decoded_before_the_first_read_and_then_once(tmp_path, monkeypatch):
    import imagecodecs

    calls = []
    decode = imagecodecs.png_decode
    monkeypatch.setattr(imagecodecs, "png_decode", lambda data: calls.append(1) or decode(data))
    Image.fromarray(picture()).save(tmp_path / "a.png")
    source = open_image(tmp_path / "a.png")
    assert (source.height, source.width, source.nbytes, calls) == (37, 53, 37 * 53 * 3, [])
    threads = [threading.Thread(target=whole, args=(source,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


def test_a_region_outside_is_a_bug_of_the_caller():
    for region in (Region(-1, 0, 3, 3), Region(0, 0, 38, 3), Region(0, 50, 3, 54), Region(3, 0, 2, 1)):
        with pytest.raises(ValueError, match="the array is 37 x 53 px, got Region"):
            open_image(picture()).read(region)


# What is refused.


def refused(path, pattern: str, *, at_once: bool = True) -> None:
    """At opening, or (`at_once` false) at the first read."""
    source = None if at_once else open_image(path)
    with pytest.raises(BadLatents, match=pattern) as caught:
        open_image(path) if source is None else whole(source)
    text = str(caught.value)
    assert "\n" not in text
    assert text.count(";") == 2


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("data", [b"", b"\x89PN", b"GIF89a" * 30, bytes(200)])
def test_garbage_is_refused(tmp_path, suffix, data):
    (tmp_path / f"a{suffix}").write_bytes(data)
    refused(
        tmp_path / f"a{suffix}", rf"cannot be read as \{suffix} \(.*\); wanted a whole grey or RGB picture; convert it"
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("kept", [0.95, 0.6])
def test_a_truncated_file_is_refused(tmp_path, suffix, kept):
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(image).save(out, {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[suffix])
    (tmp_path / f"a{suffix}").write_bytes(out.getvalue()[: int(len(out.getvalue()) * kept)])
    refused(tmp_path / f"a{suffix}", rf"cannot be read as \{suffix} \(.*\); wanted a whole", at_once=False)


@pytest.mark.parametrize("options", [{}, {"compression": "jpeg", "tile": (16, 16)}])
def test_a_truncated_tiff_is_refused(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb", **options)
    os.truncate(tmp_path / "a.tif", (tmp_path / "a.tif").stat().st_size - 9)
    refused(tmp_path / "a.tif", r"cannot be read as \.tif \(it ends before its pixels do\)")


@pytest.mark.parametrize(
    ("image", "options", "problem"),
    [
        (picture(channels=1)[..., 0], {"photometric": "miniswhite"}, "photometric interpretation is 0"),
        (picture(channels=4), {"photometric": "separated"}, "photometric interpretation is 5"),
        (picture().astype(np.float32), {"photometric": "rgb"}, "it has 32 bits a sample"),
        (picture(channels=1)[..., 0] > 99, {"photometric": "minisblack"}, "it has 1 bits a sample"),
    ],
)
def test_a_tiff_that_is_not_plain_rgb_is_refused(tmp_path, image, options, problem):
    tifffile.imwrite(tmp_path / "a.tif", image, **options)
    refused(tmp_path / "a.tif", problem)


def test_cmyk_jpeg_is_refused(tmp_path):
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", r"it has 4 colour components, as CMYK has")


def test_a_png_that_lies_about_its_size_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(7, 5, 8, 0, bytes(8 * 3)))
    refused(tmp_path / "a.png", "cannot be read as .png", at_once=False)
    (tmp_path / "a.png").write_bytes(png(0, 5, 8, 0, b""))
    refused(tmp_path / "a.png", "it is 5 x 0 px")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 7, 3), np.float32),
        np.zeros((5, 7, 5), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((1, 5, 7, 3), np.uint8),
        np.zeros((5, 7, 3), np.int8),
        np.zeros((5, 7), bool),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(tmp_path, array):
    refused(array, r"wanted uint8 or uint16, \(height, width\) or")
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", r"wanted uint8 or uint16, \(height, width\) or")


def test_a_truncated_npy_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", picture())
    os.truncate(tmp_path / "a.npy", 1000)
    refused(tmp_path / "a.npy", "is truncated: 1000 bytes; wanted")


def test_what_is_missing_or_of_another_kind_is_refused(tmp_path):
    refused(tmp_path / "a.png", "does not exist; wanted a picture")
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    refused(tmp_path / "a.gif", r"is a \.gif file; wanted \.png")
    (tmp_path / "b.png").mkdir()
    refused(tmp_path / "b.png", "Is a directory; wanted to read it")
    (tmp_path / "c.zarr").mkdir()
    with pytest.raises(BadLatents, match="not written by widefield"):
        open_image(tmp_path / "c.zarr")


def test_an_unfinished_store_is_refused(tmp_path):
    spec = StoreSpec(53, 37, "f", codec="lossless", tile_px=16)
    with create_or_resume(tmp_path / "a.tif", spec) as store:
        store.write(0, 1, 2, picture()[16:32, 32:48])
    refused(tmp_path / "a.tif", r"has 1 of its 12 tiles; wanted all of them; go on with the run")


def test_a_damaged_tile_of_a_store_is_refused(tmp_path):
    path = stored(tmp_path / "a.dzi", picture())
    source = open_image(path)
    tile = tmp_path / "a_files" / "6" / "1_1.png"
    tile.write_bytes(tile.read_bytes()[:50])
    assert source.read(Region(0, 0, 16, 16)).any()
    with pytest.raises(BadLatents, match=r"tile 1,1 of .* in .* is damaged \(.*\); wanted a png tile; "):
        source.read(Region(14, 14, 20, 20))
