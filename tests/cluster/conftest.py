"""The other end of crew.py, and what it makes: a picture of many small shards, and one that is drawn."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cli.runner import ENVIRONMENT, ROOT

ORDER = {"workers": 2, "kills": 0, "longest": 1.0, "stop": False, "there": "", "seed": 0, "patience": 500.0}


@dataclass
class Told:
    statuses: list[int]
    killed: int
    left: int
    err: str
    seconds: float


class Crew:
    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("crew.py"))]
        path = ENVIRONMENT["PYTHONPATH"] + f":{ROOT / 'tests'}"
        environment = {**ENVIRONMENT, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, text=True, env=environment, **pipes)

    def run(self, *args: object, **order: object) -> Told:
        order = {**ORDER, **order, "args": [str(a) for a in args]}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Told(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="session")
def crew():
    process = Crew()
    yield process
    process.close()


@pytest.fixture(scope="session")
def latents(tmp_path_factory):
    """(4, 390, 270): 1080 x 1560 px at 4 px a latent, 4 x 3 store tiles."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:1:390j, 0:1:270j]
    waves = np.stack([np.sin(9 * x + 3 * y), y - x, np.cos(11 * y * x), x + y])
    path = tmp_path_factory.mktemp("latents") / "latents.npy"
    np.save(path, (waves + rng.normal(size=waves.shape) * x).astype(np.float32))
    return path
