"""The other end of victim.py: a fixture that gives it orders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = {"width": 300, "height": 200, "tile": 32, "codec": "auto", "seed": 0, "threads": 2, "signal": 9}


class Victim:
    def __init__(self) -> None:
        paths = os.pathsep.join(str(ROOT / name) for name in ("runtime", "tests"))
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("victim.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def run(self, path: Path, *, die_at: int = 0, limit: int = 0, delay: float = 0, **order) -> dict:
        order = {**ORDER, **order, "path": str(path), "die_at": die_at, "limit": limit, "delay": delay}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert answer["crash"] is None, answer["crash"]
        return answer

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def victim():
    process = Victim()
    yield process
    process.close()
