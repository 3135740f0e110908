"""Tiles of a stored picture over HTTP: byte for byte what is stored, and the pixels that other libraries read there."""

import io

import httpx
import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from serve.pictures import scene
from serve.servers import running
from store.pictures import fill, reference_pyramid, tile_of
from widefield.serve.gallery import stored_gallery
from widefield.serve.pyramid import Pyramid
from widefield.serve.stored import StoredPicture
from widefield.store import PyramidWriter, StoreSpec, create_or_resume, open_store

TILE = 256
PYRAMID = Pyramid(1300, 901, TILE)


@pytest.fixture(scope="module")
def served(jpeg, lossless):
    """(suffix to (a client, the picture's id))."""
    with (
        running(stored_gallery(StoredPicture(jpeg[0]))) as one,
        running(stored_gallery(StoredPicture(lossless[0]))) as two,
    ):
        clients = {}
        for suffix, url in ((".tif", one), (".zarr", two)):
            client = httpx.Client(base_url=url)
            clients[suffix] = client, client.get("/pictures").json()["first"]
        yield clients
        for client, _ in clients.values():
            client.close()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_whole_jpeg_tiles_are_those_of_the_file_byte_for_byte(served, jpeg):
    client, name = served[".tif"]
    passed = 0
    with open_store(jpeg[0]) as store:
        for level in range(len(store.levels)):
            rows, columns = PYRAMID.grid(level)
            for row, column in np.ndindex(rows, columns):
                box = PYRAMID.box(level, row, column)
                answer = client.get(f"/dzi/{name}_files/{PYRAMID.deepest - level}/{column}_{row}.jpeg")
                assert answer.status_code == 200 and answer.headers["content-type"] == "image/jpeg"
                if (box.height, box.width) == (TILE, TILE):
                    assert answer.content == store.read_encoded(level, row, column)
                    passed += 1
    assert passed == 15 + 2 + 0


def test_tifffile_and_libvips_read_the_same_pixels(served, jpeg):
    client, name = served[".tif"]
    path, image = jpeg
    for level, truth in enumerate(reference_pyramid(image, 3)):
        by_tifffile = tifffile.imread(path, level=level)
        by_vips = pyvips.Image.new_from_file(str(path), page=level).numpy()
        lost = np.abs(
            by_tifffile.astype(int) - truth
        ).max()  # by the first encoding; a second at the edge loses no more
        for row, column in np.ndindex(*PYRAMID.grid(level)):
            data = client.get(f"/dzi/{name}_files/{PYRAMID.deepest - level}/{column}_{row}.jpeg").content
            ours, theirs = decoded(data).astype(int), tile_of(by_tifffile, TILE, row, column)
            assert ours.shape == theirs.shape
            whole = theirs.shape[:2] == (TILE, TILE)
            assert np.abs(ours - theirs).max() <= (1 if whole else lost)
            if whole:
                np.testing.assert_array_equal(
                    pyvips.Image.new_from_buffer(data, "").numpy(), tile_of(by_vips, TILE, row, column)
                )


def test_lossless_tiles_are_exact_to_the_edge_and_down_to_one_pixel(served, lossless):
    client, name = served[".zarr"]
    for level, truth in enumerate(reference_pyramid(lossless[1], PYRAMID.deepest + 1)):
        for row, column in np.ndindex(*PYRAMID.grid(level)):
            answer = client.get(f"/dzi/{name}_files/{PYRAMID.deepest - level}/{column}_{row}.png")
            np.testing.assert_array_equal(decoded(answer.content), tile_of(truth, TILE, row, column))


@pytest.mark.parametrize("suffix, form", [(".tif", "jpeg"), (".zarr", "png")])
def test_the_descriptor_says_what_is_there(served, suffix, form):
    client, name = served[suffix]
    text = client.get(f"/dzi/{name}.dzi").text
    assert f'Format="{form}"' in text and 'TileSize="256"' in text and 'Overlap="0"' in text
    assert 'Height="901" Width="1300"' in text


def test_a_tile_is_cached_for_ever_and_not_sent_twice(served):
    client, name = served[".tif"]
    first = client.get(f"/dzi/{name}_files/11/1_1.jpeg")
    assert "immutable" in first.headers["cache-control"]
    again = client.get(f"/dzi/{name}_files/11/1_1.jpeg", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == first.headers["etag"]
    other = client.get(f"/dzi/{name}_files/11/1_2.jpeg", headers={"if-none-match": first.headers["etag"]})
    assert other.status_code == 200


def test_a_dzi_store_is_passed_on_to_its_edges(tmp_path):
    image = scene(700, 300)
    with create_or_resume(tmp_path / "a.dzi", StoreSpec(700, 300, "5eed", tile_px=256)) as store:
        fill(store, image)
    with running(stored_gallery(StoredPicture(tmp_path / "a.dzi"))) as url, httpx.Client(base_url=url) as client:
        name = client.get("/pictures").json()["first"]
        for path in (tmp_path / "a_files").glob("*/*.jpeg"):
            assert client.get(f"/dzi/{name}_files/{path.parent.name}/{path.name}").content == path.read_bytes()


def test_what_a_run_is_making_appears(tmp_path):
    """Tiles that are missing are 404 and not cached; news of them, and a preview of what there is, come as they do."""
    image = scene(1300, 901)
    spec = StoreSpec(1300, 901, "5eed", "lossless", tile_px=256)
    with create_or_resume(tmp_path / "a.zarr", spec) as store:
        writer = PyramidWriter(store, threads=1)
        with running(stored_gallery(StoredPicture(tmp_path / "a.zarr"))) as url, httpx.Client(base_url=url) as client:
            name = client.get("/pictures").json()["first"]
            missing = client.get(f"/dzi/{name}_files/11/0_0.png")
            assert missing.status_code == 404 and missing.headers["cache-control"] == "no-store"
            assert client.get(f"/pictures/{name}/preview.jpeg").status_code == 404
            with client.stream("GET", f"/pictures/{name}/events", timeout=30) as events:
                lines = events.iter_lines()
                assert next(lines) == "event: state"
                wanted = list(writer.missing())
                for row, column in wanted[:4]:
                    writer.put(row, column, tile_of(image, 256, row, column))
                while store.done(0).sum() < 4 or store.done(1).sum() < 1:
                    pass
                assert next(line for line in lines if line.startswith("event: ")) == "event: tiles"
                assert "[0, 0, 0]" in next(lines)
            assert client.get(f"/pictures/{name}").json()["state"]["busy"]
            tile = client.get(f"/dzi/{name}_files/11/0_0.png")
            np.testing.assert_array_equal(decoded(tile.content), image[:256, :256])
            preview = decoded(client.get(f"/pictures/{name}/preview.jpeg").content)
            assert preview.shape == (451, 650, 3)
            np.testing.assert_allclose(preview[100, 100], reference_pyramid(image, 2)[1][100, 100], atol=20)
            assert (preview[400, 600] < 40).all(), "nothing is there yet"
            for row, column in wanted[4:]:
                writer.put(row, column, tile_of(image, 256, row, column))
            writer.close()
            while client.get(f"/pictures/{name}").json()["state"]["busy"]:
                pass
