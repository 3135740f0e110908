"""`widefield serve`, as it is typed: what it says, what it refuses, and how it ends."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from cli.runner import run
from house.places import environment, python
from widefield.serve.run import Address
from widefield_bench.servers import Process, started


def test_it_serves_until_ctrl_c_and_ends_well(jpeg, tmp_path):
    with started(jpeg[0], cache=tmp_path) as server:
        assert httpx.get(f"{server.url}/healthz").text == "ok\n"
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        assert "OpenSeadragon" in httpx.get(f"{server.url}/").text
        about = httpx.get(f"{server.url}/pictures/{server.picture}").json()
        assert (about["name"], about["width"], about["height"]) == ("coast.tif", 1300, 901)
        events = httpx.stream("GET", f"{server.url}/pictures/{server.picture}/events", timeout=30)
        with events as stream:  # one that watches does not keep it from ending
            assert next(stream.iter_lines()) == "event: state"
            status, said = server.stop()
            assert (status, said) == (0, "closed\n")


def test_without_a_picture_it_asks_for_prompts(tmp_path):
    with started("--cache-size", "0", cache=tmp_path) as server:
        assert server.picture is None
        assert httpx.get(f"{server.url}/pictures").json() == {"draws": True, "first": None, "pictures": []}
        wish = {"prompt": "a", "size": [5000, 3000], "seed": 1}
        assert httpx.post(f"{server.url}/pictures", json=wish, timeout=60).status_code == 201
    assert not any(tmp_path.iterdir()), "nothing is kept where nothing may be"


def test_sigterm_ends_it_too(jpeg, tmp_path):
    server = Process(jpeg[0], cache=tmp_path)
    os.kill(server.process.pid, signal.SIGTERM)
    _, said = server.process.communicate(timeout=60)
    assert server.process.returncode in (0, -signal.SIGTERM) and said == ""


def test_a_port_in_use_is_one_line(jpeg, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = run(capsys, "serve", jpeg[0], "--port", taken.getsockname()[1])
    assert "cannot be listened on" in answer.fault() and "--port" in answer.err


@pytest.mark.parametrize(
    "args, said",
    [
        (("missing.tif",), "does not exist"),
        (("missing.zarr",), "does not exist"),
        (("a coast", "--size", "2048x2048", "--memory", "100MiB"), "raise --memory to"),
        (("a coast", "--size", "99999999x99999999"), "wanted sides of 1 to"),
        (("a coast", "--size", "1048576x4096"), "too long to be looked at"),
        (("a coast", "--size", "512x512", "--bundle", "nowhere.wf"), "nowhere.wf"),
    ],
)
def test_what_cannot_be_served_is_one_line(args, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answer = run(capsys, "serve", *args, "--port", "0")
    assert said in answer.fault()


@pytest.mark.parametrize(
    "args, said", [(("a coast",), "needs --size"), (("a.tif", "--size", "10x10"), "are for a prompt"), (("a", "b"), "")]
)
def test_misuse_is_2(args, said, capsys):
    answer = run(capsys, "serve", *args)
    assert answer.status == 2 and said in answer.err


def test_a_png_has_no_pyramid_and_says_so(tmp_path, capsys):
    from serve.pictures import scene
    from store.pictures import fill
    from widefield.store import StoreSpec, create_or_resume

    with create_or_resume(tmp_path / "a.png", StoreSpec(70, 50, "5eed", "auto", tile_px=64)) as store:
        fill(store, scene(70, 50))
    assert "has no pyramid" in run(capsys, "serve", tmp_path / "a.png").fault()


def test_a_folder_of_somebody_else_is_no_cache(tmp_path, capsys):
    (tmp_path / "letters.txt").write_text("private")
    answer = run(capsys, "serve", "a coast", "--size", "512x512", "--cache", tmp_path)
    assert "no tiles of widefield" in answer.fault()


@pytest.mark.parametrize(
    "host, alone",
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("127.0.0.1.example", False)],
)  # fmt: skip
def test_which_addresses_are_this_machine_alone(host, alone):
    assert Address(host, 0).is_loopback is alone


def test_beyond_this_machine_it_warns(capsys):
    from widefield.commands.serve import _warn

    _warn(Address("127.0.0.1", 8000))
    assert capsys.readouterr().err == ""
    _warn(Address("0.0.0.0", 8000))
    warning = capsys.readouterr().err
    assert warning.startswith("warning: 0.0.0.0 can be reached from other machines") and warning.count("\n") == 1


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_without_its_libraries_it_names_the_extra(package, extras_of_the_package):
    code = "from widefield.cli import main\nsys.exit(main(['serve', 'a.tif']))"
    done = python(code, blocked=(package,))
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert f"needs {package}" in done.stderr and "pip install 'widefield[serve]'" in done.stderr
    assert "serve" in extras_of_the_package


@pytest.fixture
def extras_of_the_package():
    import tomllib

    from house.places import ROOT

    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_help_says_how(tmp_path):
    command = [sys.executable, "-m", "widefield.cli", "serve", "--help"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    for option in ("--host", "--port", "--queue", "--cache", "--cache-size", "--memory", "--size", "--seed"):
        assert option in done.stdout
