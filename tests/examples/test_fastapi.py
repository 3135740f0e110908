"""examples/fastapi, started as it is and asked over a socket: by httpx, and by OpenAI's own client."""

import base64
import importlib.util
import io
import socket
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

import widefield
from house.places import ROOT

PROMPT, SEED, SIZE = "an icy coast", 7, (128, 112)
PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def service():
    """The example's module."""
    spec = importlib.util.spec_from_file_location("fastapi_service", ROOT / "examples/fastapi/service.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def url(service):
    """Of the service, in a thread of this process."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(service.app, log_level="critical", lifespan="on", timeout_graceful_shutdown=60)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_for(lambda: server.started)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def wanted():
    """What the library reads of two seeds."""
    model = widefield.open()
    return [np.asarray(model.generate(PROMPT, size=SIZE, seed=SEED + n)) for n in range(2)]


def wait_for(true, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def asked(url: str, **more) -> httpx.Response:
    return httpx.post(url + PATH, json={"prompt": PROMPT, "seed": SEED, "size": "128x112", **more}, timeout=300)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def state(url: str) -> dict:
    return httpx.get(f"{url}/healthz").json()


@contextmanager
def one_who_leaves(url: str, size: str):
    """Somebody who asks for a picture in a thread, and hangs up when the block ends."""
    client = httpx.Client(timeout=httpx.Timeout(300))
    before = state(url)["asked"]

    def ask() -> None:
        wish = {"prompt": PROMPT, "size": size}
        with pytest.raises(httpx.TransportError), client.stream("POST", url + PATH, json=wish) as answer:
            answer.read()

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: state(url)["asked"] > before)
    try:
        yield
    finally:
        for each in client._transport._pool.connections:
            each._connection._network_stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        thread.join()
        client.close()


def test_a_picture_is_the_librarys(url, wanted):
    answer = asked(url, n=2, response_format="b64_json")
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [each["seed"] for each in data] == [SEED, SEED + 1]
    for each, image in zip(data, wanted, strict=True):
        np.testing.assert_array_equal(pixels(base64.b64decode(each["b64_json"])), image)


def test_a_picture_of_256_x_256_px_is_the_librarys(url):
    (data,) = asked(url, size="256x256", response_format="b64_json").json()["data"]
    with widefield.open().generate(PROMPT, size=(256, 256), seed=SEED) as picture:
        np.testing.assert_array_equal(pixels(base64.b64decode(data["b64_json"])), picture[:, :])


def test_a_url_gives_the_same_which_says_what_it_is(url, wanted):
    (data,) = asked(url).json()["data"]
    assert data["url"].startswith(f"{url}/v1/images/")
    png = httpx.get(data["url"])
    assert png.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels(png.content), wanted[0])
    image = Image.open(io.BytesIO(png.content))
    assert "trainedAlgorithmicMedia" in image.text["XML:com.adobe.xmp"]
    gone = httpx.get(f"{url}/v1/images/{'0' * 32}.png")
    assert gone.status_code == 404 and gone.json()["error"]["type"] == "invalid_request_error"


def test_openais_client_takes_it(url, wanted):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        more = {"prompt": PROMPT, "size": "128x112", "extra_body": {"seed": SEED}}
        answer = client.images.generate(**more, response_format="b64_json")
        np.testing.assert_array_equal(pixels(base64.b64decode(answer.data[0].b64_json)), wanted[0])
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(prompt=PROMPT, size="4by4")
        assert refused.value.type == "invalid_request_error" and refused.value.param == "size"


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"size": "large"}, "size", "write WIDTHxHEIGHT"), ({"size": "0x64"}, "size", "is no size"),
        ({"size": "99999x99999"}, "size", "wanted at most 4,194,304 px"), ({"n": 5}, "n", "less than or equal to 4"),
        ({"prompt": ""}, "prompt", "at least 1 character"), ({"quality": "hd"}, "quality", "not permitted"),
        ({"seed": -1}, "seed", "greater than"), ({"response_format": "tiff"}, "response_format", "b64_json"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_said(url, more, param, said):
    answer = asked(url, **more)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param) and said in error["message"]


def test_a_body_that_is_no_json_and_a_path_that_is_none(url):
    for answer, status in ((httpx.post(url + PATH, content=b"{"), 400), (httpx.get(url + "/v1/models"), 404)):
        assert answer.status_code == status and answer.json()["error"]["message"]


def test_who_leaves_stops_their_picture(url):
    before = state(url)
    with one_who_leaves(url, "2048x2048"):
        pass
    wait_for(lambda: state(url)["asked"] == 0)
    after = state(url)
    assert (after["drawn"], after["stopped"]) == (before["drawn"], before["stopped"] + 1)
    assert asked(url).status_code == 200


def test_a_full_line_says_when_to_come_again_and_who_leaves_it_makes_room(url, service, monkeypatch):
    monkeypatch.setattr(service, "IN_LINE", 1)
    with one_who_leaves(url, "2048x2048"):
        with one_who_leaves(url, "2048x2048"):
            answer = asked(url)
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
            assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        wait_for(lambda: state(url)["asked"] == 1)  # the first one's picture is still drawn
    wait_for(lambda: state(url)["asked"] == 0)
