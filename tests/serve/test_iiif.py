"""IIIF Image API 3, level 2: by the validator of the IIIF community, and by what a region's pixels have to be."""

import importlib
import io

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serve.pictures import stored
from serve.servers import running
from store.pictures import fill
from widefield.errors import BadRequest
from widefield.geometry import Region
from widefield.serve import iiif
from widefield.serve.gallery import stored_gallery
from widefield.serve.pyramid import Pyramid
from widefield.serve.regions import as_tile
from widefield.serve.resize import Axis, resized
from widefield.serve.stored import MOST_REGION_PX, StoredPicture
from widefield.store import StoreSpec, create_or_resume

PYRAMID = Pyramid(1300, 901, 256)
# It wants 400 for `!2000,3000` of 1000 x 1000 px, as a draft of 3.0 did. 3.0 itself (section 4.2, `!w,h`) wants a
# picture "as large as possible but not larger than the extracted region": 1000 x 1000 px. The validator's other sizes
# are asked for by themselves.
DRAFT = "size_noup"


def squares(colours) -> np.ndarray:
    """The validator's picture: 10 x 10 squares of 100 px, of the colours that it looks for."""
    return np.kron(np.array(colours, np.uint8).transpose(1, 0, 2), np.ones((100, 100, 1), np.uint8))


@pytest.fixture(scope="module")
def validator():
    """The IIIF community's validator (iiif-validator, 1.0.5)."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its docstrings have stray backslashes
        from iiif_validator import validator

    return validator


@pytest.fixture(scope="module")
def examined(validator, tmp_path_factory):
    """(host and port, id) of a server that shows the validator's picture, stored without loss."""
    path = tmp_path_factory.mktemp("iiif") / "squares.tif"
    with create_or_resume(path, StoreSpec(1000, 1000, "5eed", "lossless")) as store:
        fill(store, squares(validator.ValidationInfo().colorInfo))
    with running(stored_gallery(StoredPicture(path))) as url:
        yield url.removeprefix("http://"), httpx.get(f"{url}/pictures").json()["first"]


def test_the_validator_finds_level_2(validator, examined):
    server, name = examined
    tests = validator.TestSuite(validator.ValidationInfo()).list_tests("3.0")
    done, failed = [], {}
    for test, about in tests.items():
        level = about["level"]["3.0"] if isinstance(about["level"], dict) else about["level"]
        if level > 2 or test == DRAFT:
            continue
        result = validator.ImageAPI(name, server, "iiif", version="3.0", debug=False)
        validator.TestSuite(validator.ValidationInfo()).run_test(test, result)
        done.append(test)
        if result.exception is not None:
            failed[test] = str(result.exception)
    assert not failed and {"info_json", "cors", "jsonld", "region_pixels", "size_wh", "rot_full_basic"} <= set(done)
    assert len(done) >= 24, done


def test_the_validator_sees_nothing_enlarged_without_a_caret(validator, examined):
    server, name = examined
    test = importlib.import_module("iiif_validator.tests.size_noup").Test_No_Size_Up(validator.ValidationInfo())
    for size in ("1413,1413", ",1413", "1413,", "pct:200"):
        result = validator.ImageAPI(name, server, "iiif", version="3.0", debug=False)
        test.checkSize(result, size)  # raises for anything but 400
        assert result.last_status == 400
    answer = httpx.get(f"http://{server}/iiif/{name}/full/!2000,3000/0/default.png")
    assert Image.open(io.BytesIO(answer.content)).size == (1000, 1000)


def test_mirroring_is_as_the_validator_wants_it(validator, examined):
    server, name = examined
    for test in ("rot_mirror", "rot_mirror_180", "quality_bitonal", "region_square"):
        result = validator.ImageAPI(name, server, "iiif", version="3.0", debug=False)
        validator.TestSuite(validator.ValidationInfo()).run_test(test, result)
        assert result.exception is None, f"{test}: {result.exception}"


@pytest.fixture(scope="module")
def client(lossless):
    with running(stored_gallery(StoredPicture(lossless[0]))) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.name = client.get("/pictures").json()["first"]
        yield client


def got(client, words: str) -> np.ndarray:
    answer = client.get(f"/iiif/{client.name}/{words}")
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB"))


def test_a_region_at_its_own_size_is_the_picture(client, lossless):
    image = lossless[1]
    np.testing.assert_array_equal(got(client, "37,411,701,290/max/0/default.png"), image[411:701, 37:738])
    np.testing.assert_array_equal(got(client, "1200,800,500,500/max/0/default.png"), image[800:, 1200:])
    np.testing.assert_array_equal(got(client, "0,0,300,200/max/90/default.png"), np.rot90(image[:200, :300], -1))
    np.testing.assert_array_equal(
        got(client, "0,0,300,200/max/!270/default.png"), np.rot90(image[:200, :300][:, ::-1], 1)
    )
    square = got(client, "square/max/0/default.png")
    np.testing.assert_array_equal(square, image[:, 199:1100])


def test_a_smaller_one_is_as_pillow_makes_it(client, lossless):
    """Both are tents on what there is; ours begins at the level of the pyramid that is not smaller."""
    image = Image.fromarray(lossless[1])
    for width, height in ((650, 451), (611, 333), (200, 139), (90, 700)):
        theirs = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), int)
        ours = got(client, f"full/{width},{height}/0/default.png").astype(int)
        contrast = theirs.std()
        assert ours.shape == theirs.shape and np.sqrt(np.mean((ours - theirs) ** 2)) < 0.1 * contrast


@given(st.integers(1, 700), st.integers(1, 900), st.integers(0, 300), st.data())
def test_resizing_in_bands_is_resizing_at_once_and_keeps_a_constant(of, size, start, data):
    start = min(start, of - 1)
    length = data.draw(st.integers(1, of - start))
    axis, across = Axis(of, start, length, size), Axis(2, 0, 2, 3)
    line = np.random.default_rng(of).integers(0, 256, (of, 2, 3)).astype(np.uint8)
    whole = resized(line, (0, 0), axis, across, (0, size))
    cut = data.draw(st.integers(0, size - 1))
    y0, y1 = axis.needs(cut, size)
    np.testing.assert_array_equal(resized(line[y0:y1], (y0, 0), axis, across, (cut, size)), whole[cut:])
    assert (resized(np.full_like(line, 77), (0, 0), axis, across, (0, size)) == 77).all()


def test_a_view_that_is_a_tile_is_that_tiles_bytes(jpeg):
    with running(stored_gallery(StoredPicture(jpeg[0]))) as url, httpx.Client(base_url=url) as client:
        name = client.get("/pictures").json()["first"]
        info = client.get(f"/iiif/{name}/info.json").json()
        assert info["tiles"] == [{"width": 256, "scaleFactors": [1, 2, 4, 8, 16, 32, 64, 128]}]
        for words, place in (
            ("256,512,256,256/256,256", "11/1_2"),
            ("256,512,256,256/max", "11/1_2"),
            ("512,512,512,389/256,195", "10/1_1"),
            ("0,0,1300,901/163,113", "8/0_0"),
        ):
            region = client.get(f"/iiif/{name}/{words}/0/default.jpg")
            assert region.content == client.get(f"/dzi/{name}_files/{place}.jpeg").content, words
            assert "level2.json" in region.headers["link"]


def parsed(region="full", size="max", rotation="0", last="default.jpg", most_px=MOST_REGION_PX):
    return iiif.parse(PYRAMID, most_px, region, size, rotation, last)


@pytest.mark.parametrize(
    "region, wanted",
    [
        ("full", Region(0, 0, 901, 1300)), ("square", Region(0, 199, 901, 1100)), ("5,7,9,11", Region(7, 5, 18, 14)),
        ("1290,890,999999999,999999999", Region(890, 1290, 901, 1300)), ("pct:50,50,25,25", Region(450, 650, 675, 975)),
        ("pct:0,0,100,100", Region(0, 0, 901, 1300)),
    ],
)  # fmt: skip
def test_regions(region, wanted):
    assert parsed(region).view.region == wanted


@pytest.mark.parametrize(
    "size, wanted",
    [
        ("max", (901, 1300)), ("650,", (450, 650)), (",90", (90, 130)), ("130,200", (200, 130)),
        ("!500,500", (346, 500)),
        ("pct:50", (450, 650)), ("!5000,5000", (901, 1300)), ("^1301,", (902, 1301)), ("^!2600,9999", (1802, 2600)),
        ("^pct:200", (1802, 2600)), ("^max", (2397, 3459)),
    ],
)  # fmt: skip
def test_sizes(size, wanted):
    view = parsed(size=size).view
    assert (view.height, view.width) == wanted


@pytest.mark.parametrize(
    "words",
    [
        {"region": "0,0,0,5"}, {"region": "1300,0,5,5"}, {"region": "-1,0,5,5"}, {"region": "1,2,3"},
        {"region": "pct:1,2,3"},
        {"region": "1.5,0,5,5"}, {"region": "٣,0,5,5"}, {"region": "0,0,99999999999,5"}, {"region": "pct:101,0,5,5"},
        {"size": "full"}, {"size": "0,"}, {"size": ","}, {"size": "1301,"}, {"size": "pct:101"}, {"size": "pct:0"},
        {"size": "^9999,9999"}, {"size": "!5,"}, {"size": "-5,"}, {"size": "1e3,"}, {"size": "^"}, {"size": ""},
        {"size": ",902"},
        {"size": "!0,5"}, {"rotation": "45"}, {"rotation": "-90"}, {"rotation": "361"}, {"rotation": "!"},
        {"rotation": "nan"},
        {"last": "default"}, {"last": "default.gif"}, {"last": "native.jpg"}, {"last": "default.jpg.png"},
        {"last": ".jpg"},
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(words):
    with pytest.raises(BadRequest, match="was asked for; wanted"):
        parsed(**words)


@given(st.integers(1, 4000), st.integers(1, 4000), st.data())
def test_every_tile_of_info_json_is_found_to_be_one(width, height, data):
    """A client computes a tile's region and size from info.json, as the specification tells it; we know it again."""

    class Shown:
        pyramid = Pyramid(width, height, 256)

    level = data.draw(st.integers(0, Shown.pyramid.deepest))
    rows, columns = Shown.pyramid.grid(level)
    row, column, s = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1)), 1 << level
    x, y = column * 256 * s, row * 256 * s
    w, h = min(256 * s, width - x), min(256 * s, height - y)
    wanted = -(-w // s), -(-h // s)
    request = iiif.parse(Shown.pyramid, 1 << 24, f"{x},{y},{w},{h}", f"{wanted[0]},{wanted[1]}", "0", "default.jpg")
    found = as_tile(Shown, request.view)
    assert found is not None
    box, meant = Shown.pyramid.box(*found), Shown.pyramid.box(level, row, column)
    assert (box.height, box.width) == (meant.height, meant.width)
    assert found == (level, row, column) or (w, h) == (width, height)


def test_a_picture_of_one_level_has_one_scale(tmp_path):
    path, _ = stored(tmp_path / "small.tif", 70, 31, "jpeg")
    with running(stored_gallery(StoredPicture(path))) as url:
        name = httpx.get(f"{url}/pictures").json()["first"]
        info = httpx.get(f"{url}/iiif/{name}/info.json").json()
    assert info["width"] == 70 and 1 in info["tiles"][0]["scaleFactors"]
    assert {"width": 70, "height": 31} in info["sizes"]
