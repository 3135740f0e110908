"""What no honest client sends: each is answered 4xx in one line, nothing outside the picture is read, others go on."""

import contextlib
import socket
import time
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from serve.painted import gallery
from serve.servers import running
from widefield.serve.gallery import stored_gallery
from widefield.serve.stored import StoredPicture

SECRET = "the content of a file beside the picture"
HAND_MADE = [
    "/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/%2e%2e%2fsecret.txt", "/%252e%252e%252fsecret.txt",
    "/assets/../../secret.txt", "/assets/..%2f..%2fassets.py", "/assets/%2fetc%2fpasswd", "/assets//etc/passwd",
    "/assets/..%5c..%5csecret.txt", "/assets/viewer.js%00.txt", "/assets/integrity", "/assets/.", "/assets/",
    "/dzi/../secret.txt.dzi", "/dzi/%2e%2e%2fsecret.txt.dzi", "/dzi/{id}_files/../../secret.txt",
    "/dzi/{id}_files/11/..%2f..%2fsecret.txt", "/dzi/{id}_files/%2e%2e/0_0.jpeg", "/dzi/{id}_files/-1/0_0.jpeg",
    "/dzi/{id}_files/99999999999999999999/0_0.jpeg", "/dzi/{id}_files/11/-1_0.jpeg", "/dzi/{id}_files/11/0_-1.jpeg",
    "/dzi/{id}_files/11/999999999_999999999.jpeg", "/dzi/{id}_files/11/1e3_0.jpeg", "/dzi/{id}_files/11/0x1_0.jpeg",
    "/dzi/{id}_files/11/%D9%A3_0.jpeg", "/dzi/{id}_files/11/0_0.tif", "/dzi/{id}_files/nan/0_0.jpeg",
    "/dzi/{id}_files/+3/0_0.jpeg", "/dzi/{id}_files/1_1/0_0.jpeg", "/dzi/{id}_files/11/0_0.jpeg/..",
    "/dzi/{id}_files/11/",
    "/iiif/{id}/full/max/0", "/iiif/{id}/0,0,1000000,1000000/1000000,1000000/0/default.jpg",
    "/iiif/{id}/full/^1000000,1000000/0/default.png", "/iiif/{id}/full/^pct:100000/0/default.jpg",
    "/iiif/{id}/pct:1e99,0,1,1/max/0/default.jpg", "/iiif/{id}/pct:nan,0,1,1/max/0/default.jpg",
    "/iiif/{id}/pct:-1,0,1,1/max/0/default.jpg", "/iiif/{id}/0,0,-5,-5/max/0/default.jpg",
    "/iiif/{id}/full/max/1e309/default.jpg", "/iiif/{id}/full/max/0/..%2f..%2fsecret.jpg",
    "/iiif/%2e%2e/info.json", "/pictures/..", "/pictures/%2e%2e%2fhealthz", "/pictures/{id}/events/..",
    "/%00", "/%ff%fe",
    "/pictures/{id}%00", "/pictures/" + "a" * 5000, "/?" + "a=b&" * 2000, "//evil.example/", "/metrics/..%2f..",
]  # fmt: skip
WORD = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBER = st.one_of(
    st.integers(-(10**25), 10**25).map(str), st.floats().map(str), st.sampled_from(["", "+1", " 1", "1 ", "0x10", "１"])
)
PIECE = st.one_of(
    WORD, NUMBER, st.sampled_from(["..", ".", "%2e%2e", "..%2f", "~", "etc", "passwd", "secret.txt", "full", "max"])
)


@pytest.fixture(scope="module")
def shown(jpeg):
    """(a client, the picture's id, the host's (name, port)); a secret lies beside the picture."""
    (jpeg[0].parent / "secret.txt").write_text(SECRET)
    with running(stored_gallery(StoredPicture(jpeg[0]))) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client, client.get("/pictures").json()["first"], (urlsplit(url).hostname, urlsplit(url).port)


def raw(host: tuple[str, int], request: bytes, seconds: float = 10) -> bytes:
    """What is answered to bytes that no client library would send."""
    with socket.create_connection(host, timeout=seconds) as sent:
        sent.sendall(request)
        answer = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while piece := sent.recv(1 << 16):
                answer += piece
        return answer


def asked(host: tuple[str, int], target: str) -> tuple[int, bytes]:
    """(status, body) of a GET whose path is sent as it is, dots and all."""
    target = quote(target, safe="/%?=&,:^!~.-+_;@$'()*#[]{}\\|<>").replace(" ", "%20").replace("#", "%23")
    head = f"GET {target} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    answer = raw(host, head.encode("latin-1"))
    header, _, body = answer.partition(b"\r\n\r\n")
    return int(header.split(b" ", 2)[1]), body


def harmless(status: int, body: bytes) -> None:
    """A page of ours or a picture, or a refusal in one line that says nothing of the machine."""
    assert status in (200, 303, 304, 307, 400, 404, 405, 421), (status, body[:300])
    assert SECRET.encode() not in body and b"root:x:" not in body and b"Traceback" not in body
    if status >= 400:
        assert body.count(b"\n") <= 1 and b"/tmp/" not in body and b".py" not in body.replace(b"assets.py", b""), body


@pytest.mark.parametrize("target", HAND_MADE)
def test_hand_made(shown, target):
    _, name, host = shown
    status, body = asked(host, target.replace("{id}", name))
    harmless(status, body)
    if not target.startswith("/?"):
        assert 400 <= status < 500 or status in (303, 307), (status, target)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PIECE, max_size=7), st.booleans())
@example(["dzi", "..", "..", "etc", "passwd"], False)
def test_any_path(shown, pieces, encoded):
    _, name, host = shown
    path = "/" + "/".join(quote(piece, safe="") if encoded else piece for piece in pieces)
    harmless(*asked(host, path.replace("{id}", name)))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NUMBER, NUMBER, NUMBER, st.sampled_from(["jpeg", "jpg", "png", "tif", "", "jpeg%00"]))
def test_any_tile(shown, depth, column, row, form):
    _, name, host = shown
    status, body = asked(host, f"/dzi/{name}_files/{depth}/{column}_{row}.{form}")
    harmless(status, body)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NUMBER, min_size=3, max_size=5), st.lists(NUMBER, min_size=1, max_size=3), NUMBER, st.booleans())
def test_any_region(shown, region, size, rotation, percent):
    _, name, host = shown
    words = f"{'pct:' if percent else ''}{','.join(region)}/{'^' if percent else ''}{','.join(size)}/{rotation}"
    harmless(*asked(host, f"/iiif/{name}/{words}/default.jpg"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_bytes(shown, data):
    client, _, host = shown
    answer = raw(host, data + b"\r\n\r\n", seconds=0.2)
    assert answer == b"" or answer.split(b" ", 2)[1][:1] == b"4" or answer.startswith(b"HTTP/1.1 200"), answer[:100]
    assert b"Traceback" not in answer
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FROB"])
def test_other_methods_change_nothing(shown, method):
    client, name, _ = shown
    for path in (f"/dzi/{name}_files/11/0_0.jpeg", "/", f"/pictures/{name}", "/metrics"):
        assert client.request(method, path).status_code == 405


def test_a_server_of_one_picture_draws_none(shown):
    client, _, _ = shown
    answer = client.post("/pictures", json={"prompt": "a", "size": [512, 512]})
    assert answer.status_code == 400 and "draws none" in answer.text


def test_a_long_line_and_many_headers_are_refused(shown):
    client, _, host = shown
    for request in (
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x: y\r\n" * 50_000 + b"\r\n",
    ):
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            answer = raw(host, request)
            assert answer == b"" or answer.split(b" ", 2)[1] in (b"400", b"431"), answer[:100]
    assert client.get("/healthz").status_code == 200


def test_another_name_for_this_machine_is_not_answered(shown):
    client, _, _ = shown
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.", "[::2]:80"):
        assert client.get("/pictures", headers={"host": host}).status_code in (400, 421)
    assert client.get("/pictures", headers={"host": "localhost:1234"}).status_code == 200


def test_readers_who_stop_reading_and_writers_who_stop_writing_harm_nobody(shown):
    client, name, host = shown
    stuck = []
    try:
        for n in range(40):
            slow = socket.create_connection(host)
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            whole = f"GET /dzi/{name}_files/11/{n % 5}_1.jpeg HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode() * 3
            slow.sendall(whole if n % 2 else whole[:30])
            stuck.append(slow)
        began = time.monotonic()
        for column in range(5):
            assert client.get(f"/dzi/{name}_files/11/{column}_0.jpeg").status_code == 200
        assert time.monotonic() - began < 20
    finally:
        for slow in stuck:
            slow.close()


def test_regions_that_nobody_takes_leave_room_again(shown):
    """More are asked for at once than are made at once; those too many are told to come again, and later it is free."""
    client, name, host = shown
    stuck = []
    for n in range(12):
        slow = socket.create_connection(host)
        slow.sendall(f"GET /iiif/{name}/{n},0,1200,900/max/0/default.png HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        stuck.append(slow)
    for slow in stuck:
        slow.close()
    until = time.monotonic() + 60
    while (status := client.get(f"/iiif/{name}/3,5,700,500/max/0/default.png").status_code) == 503:
        assert time.monotonic() < until, "it stays busy"
        time.sleep(0.2)
    assert status == 200


def test_a_drawn_picture_of_any_size_is_refused_or_opened_and_draws_nothing(tmp_path):
    shown = gallery(tmp_path)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(-5, 1 << 22), st.integers(-5, 1 << 22), st.integers(-(1 << 65), 1 << 65), WORD)
    def wish(width, height, seed, prompt):
        answer = client.post("/pictures", json={"prompt": prompt, "size": [width, height], "seed": seed})
        assert answer.status_code in (201, 400), answer.text

    with running(shown) as url, httpx.Client(base_url=url, timeout=60) as client:
        wish()
        assert not any(picture.made or picture.drawing for picture in shown.pictures())
