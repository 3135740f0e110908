"""Actors on Ray make what one process makes; killed with -9, they and their driver lose nothing."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cli.runner import ENVIRONMENT
from cluster.test_many import DECODED, assert_as_alone

pytest.importorskip("ray")
RAY = ("--cluster", "ray", "--lease", 2)


@pytest.fixture(scope="module")
def place():
    """A short path, for Ray's sockets lie there. What is left of its processes, which name it, is ended."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield folder
    for process in Path("/proc").glob("[0-9]*"):
        if str(folder) in _text(process / "cmdline"):
            os.kill(int(process.name), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it ended
        return ""


@pytest.fixture(scope="module")
def alone(drawing_bundle, latents, crew, tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "sea.zarr"
    assert crew.run("decode", drawing_bundle, latents, *DECODED, "-o", path, workers=1).statuses == [0]
    return path


def driver(place: Path, *args: object) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-m", "widefield.cli", *map(str, args)]
    environment = {**ENVIRONMENT, "RAY_TMPDIR": str(place), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes)


def shard_claims(path: Path) -> list[dict]:
    """What workers who are at a shard say of themselves."""
    texts = [_text(claim) for claim in path.with_name(path.name + ".cluster").glob("*/claim-shard-[0-9]*")]
    return [json.loads(text) for text in texts if text]


def wait_for_claim(path: Path, process: subprocess.Popen) -> dict | None:
    """One of them; None when the driver ended before there was any."""
    while process.poll() is None:
        if claims := shard_claims(path):
            return claims[0]
        time.sleep(0.01)
    return None


def kill_actor(claim: dict) -> bool:
    """Whether there was one: a claim may be of one that is dead, and its number somebody else's by now."""
    if not _text(Path(f"/proc/{claim['pid']}/cmdline")).startswith("ray::"):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(claim["pid"], signal.SIGKILL)
    return True


def finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


def test_actors_and_drivers_that_are_killed_lose_nothing(drawing_bundle, latents, alone, place, tmp_path):
    path = tmp_path / "sea.zarr"
    command = ("decode", drawing_bundle, latents, *DECODED, "-o", path, *RAY, "--json")
    process = driver(place, *command)
    claim = wait_for_claim(path, process)
    assert claim is not None
    assert kill_actor(claim)
    assert wait_for_claim(path, process) is not None
    process.kill()  # the driver, and with it what is left of its cluster
    process.communicate()
    about = finish(driver(place, *command))
    assert about["workers"] and all(worker["size_px"] == [1080, 1560] for worker in about["workers"])
    assert_as_alone(path, alone)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_killed_actors_and_drivers_lose_nothing(drawing_bundle, latents, alone, place, tmp_path):
    dice = random.Random(5)
    for picture in range(5):
        path = tmp_path / str(picture) / "sea.zarr"
        path.parent.mkdir()
        command = ("decode", drawing_bundle, latents, *DECODED, "-o", path, *RAY, "--json")
        for _ in range(2):
            process = driver(place, *command)
            for _ in range(2):
                claim = wait_for_claim(path, process)
                time.sleep(dice.uniform(0, 0.5))
                if claim is not None:
                    kill_actor(claim)
            time.sleep(dice.uniform(0, 1.0))
            process.kill()
            process.communicate()
        finish(driver(place, *command))
        assert_as_alone(path, alone)


def test_without_ray_the_extra_is_named(drawing_bundle, latents, tmp_path, capsys, monkeypatch):
    from cli.runner import run

    monkeypatch.setitem(sys.modules, "ray", None)
    fault = run(capsys, "decode", drawing_bundle, latents, *DECODED, "-o", tmp_path / "sea.zarr", *RAY).fault()
    assert "--cluster ray needs ray" in fault and "pip install 'widefield[cluster]'" in fault
