"""Drawn pictures: each tile made once, kept, the same wherever it comes from, given up when nobody waits."""

import asyncio
import io
import time

import httpx
import numpy as np
import pytest
from PIL import Image

import widefield
from serve.painted import Painted, formula, gallery, studio
from serve.servers import running
from store.pictures import reference_pyramid
from widefield.errors import BadRequest, OverBudget
from widefield.geometry import Region
from widefield.serve.desk import SERVER_NBYTES, smallest_nbytes
from widefield.serve.gallery import MOST_PICTURES, Wish, drawn_gallery
from widefield.serve.lazy import drawn_levels
from widefield.store import codecs

MIB = 1 << 20


@pytest.fixture
def shown(tmp_path):
    """(the gallery, a client's URL) of a picture of 40,000 x 30,000 px."""
    shown = gallery(tmp_path / "tiles")
    with running(shown) as url:
        yield shown, url


def address(picture, level: int, row: int, column: int) -> str:
    return f"/dzi/{picture.id}_files/{picture.pyramid.deepest - level}/{column}_{row}.jpeg"


def test_a_drawn_level_is_read_and_one_between_is_the_finer_one_halved(shown):
    gallery, url = shown
    picture = gallery.first
    assert drawn_levels(picture.drawn) == {0: 4, 2: 3, 4: 2, 6: 1}
    assert picture.levels == (0, 2, 4, *range(6, 17))
    last = picture.drawn.levels - 1
    with httpx.Client(base_url=url) as client:
        for level, row, column in ((0, 58, 78), (0, 3, 5), (1, 29, 39), (2, 0, 1), (9, 0, 0), (16, 0, 0)):
            box = picture.pyramid.box(level, row, column)
            source = max(drawn for drawn in (0, 2, 4, 6) if drawn <= level)
            high, wide = picture.pyramid.size(source)
            region = box.scaled(1 << (level - source)).clipped(Region(0, 0, high, wide))
            truth = formula(3, last - source // 2, region)
            truth = reference_pyramid(truth, level - source + 1)[-1]
            assert truth.shape[:2] == (box.height, box.width)
            data = client.get(address(picture, level, row, column)).content
            assert data == codecs.encode("jpeg", truth, 90)


def test_a_tile_is_made_once_however_many_ask_and_comes_from_the_disk_later(shown, tmp_path):
    gallery, url = shown
    picture = gallery.first
    picture.drawn.seconds = 0.3

    async def ask(many: int) -> list[bytes]:
        limits = httpx.Limits(max_connections=many)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
            answers = await asyncio.gather(*(client.get(address(picture, 0, 1, 2)) for _ in range(many)))
        assert {answer.status_code for answer in answers} == {200}
        return [answer.content for answer in answers]

    first = asyncio.run(ask(40))
    assert len(set(first)) == 1 and picture.drawn.reads.total() == 1
    assert asyncio.run(ask(3)) == first[:3] and picture.drawn.reads.total() == 1
    with running(gallery_of_the_same(tmp_path)) as other, httpx.Client(base_url=other) as client:
        again = client.get(address(picture, 0, 1, 2))
        assert again.content == first[0]
        assert client.get(f"/pictures/{picture.id}").json()["state"]["made"] == 0


def gallery_of_the_same(tmp_path):
    return gallery(tmp_path / "tiles")


def test_a_closed_connection_gives_up_the_work(shown):
    gallery, url = shown
    picture = gallery.first
    picture.drawn.seconds = 60
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=url, timeout=0.5) as client:
        client.get(address(picture, 0, 1, 2))
    until = time.monotonic() + 30
    while picture.drawn.cancelled < 1:
        assert time.monotonic() < until, "it went on"
        time.sleep(0.01)
    picture.drawn.seconds = 0
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get(address(picture, 0, 1, 2)).status_code == 200


def test_a_full_queue_is_503_with_a_time_to_come_again(tmp_path):
    shown = gallery(tmp_path, queue=3, threads=1)
    picture = shown.first
    picture.drawn.seconds = 0.5

    async def ask(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(client.get(address(picture, 0, 1, n)) for n in range(12)))

    with running(shown) as url:
        answers = asyncio.run(ask(url))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) == 4 and statuses.count(503) == 8
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"2"}


def test_closing_gives_up_what_is_being_made(tmp_path):
    shown = gallery(tmp_path)
    shown.first.drawn.seconds = 600
    with running(shown) as url, pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=url, timeout=0.3) as client:
        client.get(address(shown.first, 0, 1, 2))
    assert shown.first.drawn.cancelled == 1 and shown.first.drawn.reading == 0


def test_a_visitor_draws_a_picture_and_the_same_wish_is_the_same_one(shown):
    _, url = shown
    wish = {"prompt": "a wadi", "size": [3000, 2000], "seed": "18446744073709551615"}
    with httpx.Client(base_url=url) as client:
        first, second = (client.post("/pictures", json=wish) for _ in range(2))
        assert first.status_code == second.status_code == 201 and first.json()["id"] == second.json()["id"]
        about = client.get(first.headers["location"]).json()
        assert (about["prompt"], about["seed"], about["size"]) == ("a wadi", wish["seed"], "3000x2000")
        assert client.get(f"/dzi/{about['id']}_files/{about['deepest']}/0_0.jpeg").status_code == 200
        other = client.post("/pictures", json={**wish, "seed": 1}).json()
        assert other["id"] != about["id"]


@pytest.mark.parametrize(
    "body, status",
    [
        ({"prompt": "a", "size": [0, 5]}, 400), ({"prompt": "a", "size": [1 << 30, 5]}, 400), ({"prompt": "a"}, 400),
        ({"prompt": "a", "size": ["x", 5]}, 400), ({"size": [10, 10]}, 400), ([], 400),
        ({"prompt": 5, "size": [1, 1]}, 400), ({"prompt": "a", "size": [512, 512], "seed": -1}, 400),
        ({"prompt": "a", "size": [512, 512], "seed": 1 << 64}, 400),
        ({"prompt": "a" * 1001, "size": [512, 512]}, 400), ({"prompt": "a", "size": [1 << 20, 64]}, 400),
        ({"prompt": "a" * 20000, "size": [512, 512]}, 413), ({"prompt": "a", "size": [True, 5]}, 400),
    ],
)  # fmt: skip
def test_a_wish_that_cannot_be_is_refused(shown, body, status):
    _, url = shown
    answer = httpx.post(f"{url}/pictures", json=body)
    assert answer.status_code == status, answer.text
    assert answer.text.count("\n") <= 1


def test_another_sites_page_cannot_draw(shown):
    _, url = shown
    wish = b'{"prompt": "a", "size": [512, 512]}'
    plain = httpx.post(f"{url}/pictures", content=wish, headers={"content-type": "text/plain"})
    foreign = httpx.post(
        f"{url}/pictures", content=wish, headers={"content-type": "application/json", "origin": "http://evil.example"}
    )
    own = httpx.post(f"{url}/pictures", content=wish, headers={"content-type": "application/json", "origin": url})
    assert (plain.status_code, foreign.status_code, own.status_code) == (415, 403, 201)


def test_no_more_pictures_are_open_than_fit_and_the_oldest_is_closed(tmp_path):
    one = smallest_nbytes(studio(tmp_path).draw("a", (2048, 2048), 0))
    budget = SERVER_NBYTES + 2 * one + one // 2
    shown = drawn_gallery(studio(tmp_path, memory=f"{budget}B", threads=1), None)
    desk = shown.studio.desk
    pictures = [shown.draw(Wish("a", (2048, 2048), seed))[0] for seed in range(4)]
    assert desk.places == 2
    assert all(2 * picture.drawn.options.memory_nbytes + SERVER_NBYTES <= budget for picture in pictures)

    async def look():
        for row, picture in ((0, pictures[0]), (0, pictures[1]), (0, pictures[2]), (0, pictures[3]), (1, pictures[0])):
            await picture.tile(0, row, 0)
            await picture.tile(0, row, 0)  # from the disk: nothing is opened for it
            assert len(desk) <= desk.places

    asyncio.run(look())
    assert [picture.drawn.closed for picture in pictures] == [1, 1, 1, 0]
    desk.places = 1  # as a picture of larger needs makes it
    asyncio.run(pictures[1].tile(0, 2, 0))
    assert len(desk) == 1 and pictures[3].drawn.closed == 1
    asyncio.run(shown.close())


def test_a_budget_that_cannot_work_is_refused_with_the_least_that_would(tmp_path):
    with pytest.raises(OverBudget, match="raise --memory to") as fault:
        gallery(tmp_path, memory="600MiB")
    assert gallery(tmp_path, memory=f"{fault.value.smallest_nbytes // MIB}MiB").first is not None


def test_a_server_forgets_the_oldest_wish(tmp_path):
    shown = drawn_gallery(studio(tmp_path), None)
    gone = [shown.draw(Wish("a", (512, 512), seed))[1] for seed in range(MOST_PICTURES + 2)]
    assert [len(each) for each in gone] == [0] * MOST_PICTURES + [1, 1]
    assert gone[-1][0].about["seed"] == "1" and len(shown.pictures()) == MOST_PICTURES


def test_a_picture_too_long_to_be_seen_whole_is_refused(tmp_path):
    with pytest.raises(BadRequest, match="too long to be looked at as a whole"):
        gallery(tmp_path, size=(1 << 20, 4096))


def test_a_region_of_a_drawn_picture_is_made_of_its_tiles(shown):
    gallery, url = shown
    picture = gallery.first
    data = httpx.get(f"{url}/iiif/{picture.id}/1000,2000,700,600/max/0/default.png", timeout=60).content
    found = np.asarray(Image.open(io.BytesIO(data)), int)
    truth = formula(3, picture.drawn.levels - 1, Region(2000, 1000, 2600, 1700)).astype(int)
    lost = np.abs(
        np.asarray(Image.open(io.BytesIO(codecs.encode("jpeg", truth.astype(np.uint8), 90))), int) - truth
    ).max()
    assert found.shape == truth.shape and np.abs(found - truth).max() <= 2 * lost
    assert picture.drawn.reads.total() == 9  # rows 3 to 5, columns 1 to 3: those under it and no others


def test_the_embedded_model_draws_the_tile_that_the_library_reads(tmp_path):
    model = widefield.open()
    with model.generate("an icy coast", size=(520, 520), seed=3, memory="1GiB", steps=2, workers=1) as picture:
        truth = picture.level(1)[:, :]
    lazily = studio(tmp_path, memory="1GiB")
    how = {"memory": "1GiB", "steps": 2, "workers": 1}
    lazily.draw = lambda prompt, size, seed: model.generate(prompt, size=size, seed=seed, **how)
    shown = drawn_gallery(lazily, Wish("an icy coast", (520, 520), 3))
    assert not isinstance(shown.first.drawn, Painted)
    with running(shown) as url:
        data = httpx.get(f"{url}{address(shown.first, 2, 0, 0)}", timeout=300).content
    assert truth.shape == (130, 130, 3) and data == codecs.encode("jpeg", truth, 90)
