"""The viewer, in a real browser: what a person sees and does; a quiet console, and no request beyond this machine."""

import re

import numpy as np
import pytest

from serve.browser import chromium, colour, visiting
from serve.painted import gallery, studio
from serve.pictures import scene, stored
from serve.servers import running
from store.pictures import fill
from widefield.serve.gallery import drawn_gallery, stored_gallery
from widefield.serve.stored import StoredPicture
from widefield.store import StoreSpec, create_or_resume
from widefield_bench.servers import started

SIDE = 524_288


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def coast(tmp_path_factory):
    """The URL of a stored picture, 2600 x 1801 px."""
    path, _ = stored(tmp_path_factory.mktemp("browser") / "coast.tif", 2600, 1801, "jpeg")
    with running(stored_gallery(StoredPicture(path))) as url:
        yield url


def place(seen) -> dict:
    """Where the page says that it is, in its address."""
    seen.page.wait_for_function("() => /x=/.test(location.hash)")
    return {name: float(value) for name, value in re.findall(r"\b(x|y|zoom)=([0-9.]+)", seen.page.url)}


def test_from_the_whole_to_the_pixel_and_back_by_keyboard_alone(browser, coast, tmp_path):
    with visiting(browser, coast) as seen:
        seen.loaded()
        seen.page.keyboard.press("1")
        seen.page.wait_for_function("() => /zoom=1(&|$)/.test(location.hash)")
        seen.loaded()
        at = place(seen)
        shown = np.array(colour(tmp_path, seen, 450, 350), int)
        meant = scene(2600, 1801)[int(at["y"]), int(at["x"])].astype(int)
        assert np.abs(shown - meant).max() < 30, (shown, meant)
        seen.page.locator("#view canvas, #view [tabindex='0']").first.focus()
        seen.page.keyboard.press("ArrowRight", delay=300)
        seen.page.wait_for_function(f"() => Number(/x=([0-9]+)/.exec(location.hash)?.[1]) > {at['x'] + 5}")
        seen.page.keyboard.press("0")
        seen.page.wait_for_function("() => Number(/zoom=([0-9.]+)/.exec(location.hash)?.[1]) < 0.5")
        seen.page.keyboard.press("?")
        assert seen.page.locator("#help").is_visible()
        seen.page.keyboard.press("Escape")
        seen.fair()


def test_a_link_restores_the_view(browser, coast):
    with visiting(browser, coast) as seen:
        seen.loaded()
        name = re.search(
            "picture=([0-9a-f]{16})",
            seen.page.evaluate("() => (document.getElementById('link').click(), location.hash)"),
        )
        link = f"{coast}/#picture={name[1]}&x=1777&y=333&zoom=0.75"
    with visiting(browser, link) as seen:
        seen.loaded()
        seen.page.keyboard.press("l")
        at = place(seen)
        assert abs(at["x"] - 1777) <= 2 and abs(at["y"] - 333) <= 2 and abs(at["zoom"] - 0.75) < 0.01
        seen.fair()


def test_what_is_seen_is_downloaded(browser, coast, tmp_path):
    from PIL import Image

    with visiting(browser, coast, accept_downloads=True) as seen:
        seen.loaded()
        seen.page.keyboard.press("1")
        seen.page.wait_for_function("() => /zoom=1(&|$)/.test(location.hash)")
        with seen.page.expect_download() as waiting:
            seen.page.keyboard.press("d")
        waiting.value.save_as(tmp_path / "seen.jpg")
        at = place(seen)
        found = re.fullmatch(r"coast-tif-(\d+)-(\d+)-(\d+)x(\d+)\.jpg", waiting.value.suggested_filename)
        x, y, width, height = map(int, found.groups())
        assert width in (900, 901) and height in (700, 701)
        assert abs(x + width / 2 - at["x"]) <= 2 and abs(y + height / 2 - at["y"]) <= 2
        with Image.open(tmp_path / "seen.jpg") as image:
            truth = scene(2600, 1801)[y : y + height, x : x + width].astype(float)
            assert image.size == (width, height)
            assert np.abs(np.asarray(image, float) - truth).mean() < 4
        seen.fair()


def test_tiles_appear_as_a_run_makes_them(browser, tmp_path):
    image = scene(1300, 901)
    image[...] = image // 2 + 100  # nowhere as dark as the page
    spec = StoreSpec(1300, 901, "5eed", "lossless", tile_px=256)
    with create_or_resume(tmp_path / "a.zarr", spec) as store:
        picture = StoredPicture(tmp_path / "a.zarr")
        link = f"#picture={picture.id}&x=650&y=450&zoom=1"
        with running(stored_gallery(picture)) as url, visiting(browser, f"{url}/{link}") as seen:
            seen.page.wait_for_function("() => / 0 of 33 tiles/.test(document.getElementById('status').textContent)")
            assert max(colour(tmp_path, seen, 450, 350)) < 40
            fill(store, image)
            seen.page.wait_for_function("() => document.getElementById('progress').hidden")
            seen.loaded()
            seen.page.wait_for_timeout(1500)
            shown = np.array(colour(tmp_path, seen, 450, 350), int)
            assert np.abs(shown - image[450, 650]).max() < 12, "the tile that was missing is there, and sharp"
            seen.fair()


def test_a_prompt_is_asked_for_and_drawn_on_a_phone(browser, tmp_path):
    phone = {"width": 390, "height": 844, "has_touch": True, "device_scale_factor": 2}
    with running(drawn_gallery(studio(tmp_path), None)) as url, visiting(browser, url, **phone) as seen:
        ask = seen.page.locator("#ask")
        ask.wait_for(state="visible")
        seen.page.fill("#prompt", "a wadi after rain")
        seen.page.fill("#seed", "77")
        seen.page.select_option("#size", "16384x16384")
        seen.page.click("#wish [type=submit]")
        seen.loaded()
        assert not ask.is_visible() and seen.page.inner_text("#name") == "a wadi after rain"
        assert "16,384 × 16,384 px" in seen.page.inner_text("#status")
        seen.page.tap("#in")
        seen.page.wait_for_function("() => /prompt=a\\+wadi.*seed=77&size=16384x16384&x=/.test(location.hash)")
        seen.loaded()
        heights = "all => all.map(button => button.getBoundingClientRect().height)"
        high = [height for height in seen.page.eval_on_selector_all("#tools button", heights) if height]
        assert min(high) >= 44, "a finger's width"
        assert seen.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        link = seen.page.url
        seen.fair()
    own = drawn_gallery(studio(tmp_path), None)  # of a server that never heard of it, and draws it again
    with running(own) as other, visiting(browser, other + link[link.index("/#") :]) as seen:
        seen.loaded()
        assert seen.page.inner_text("#name") == "a wadi after rain"
        seen.fair()


def test_words_that_look_like_a_page_stay_words(browser, tmp_path):
    with running(drawn_gallery(studio(tmp_path), None)) as url, visiting(browser, url) as seen:
        seen.page.fill("#prompt", "<img src=x onerror=alert(1)><b>bold</b>")
        seen.page.click("#wish [type=submit]")
        seen.loaded()
        assert seen.page.inner_text("#name") == "<img src=x onerror=alert(1)><b>bold</b>"
        seen.fair()


def test_a_drawn_picture_asks_for_drawn_levels_alone(browser, tmp_path):
    shown = gallery(tmp_path, size=(SIDE, SIDE))
    with running(shown) as url, visiting(browser, url) as seen:
        seen.loaded()
        for _ in range(4):
            seen.page.click("#in")
            seen.page.wait_for_timeout(700)
            seen.loaded()
        read = {level for level, region in shown.first.drawn.reads if region.height <= 512}
        assert len(read) >= 3 and all(region.height <= 512 for _, region in shown.first.drawn.reads)
        seen.fair()


@pytest.mark.slow
def test_the_deepest_level_of_the_embedded_checkpoint(browser, tmp_path):
    """524,288 x 524,288 px, from the whole to a pixel as large as a thumb, drawn by the model as it is looked at."""
    args = ("a temperate coast, from space", "--size", f"{SIDE}x{SIDE}", "--seed", "5", "--memory", "2GiB")
    with (
        started(*args, cache=tmp_path / "cache") as server,
        visiting(browser, server.url, width=700, height=500) as seen,
    ):
        seen.loaded(300)
        seen.page.screenshot(path=tmp_path / "whole.png")
        link = f"#prompt=a+temperate+coast%2C+from+space&seed=5&size={SIDE}x{SIDE}&x=300123&y=221456&zoom="
        for zoom in ("0.0625", "1", "4"):
            seen.page.goto(f"{server.url}/{link}{zoom}")
            seen.page.reload()
            seen.loaded(500)
            seen.page.wait_for_timeout(1000)
            seen.page.screenshot(path=tmp_path / f"zoom-{zoom}.png")
        at = place(seen)
        assert abs(at["x"] - 300123) <= 1 and abs(at["y"] - 221456) <= 1
        deepest = seen.page.evaluate(
            "() => performance.getEntriesByType('resource').filter(e => /_files\\/19\\//.test(e.name)).length"
        )
        assert deepest >= 1, "no tile of the deepest level was shown"
        seen.fair()
