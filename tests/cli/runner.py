"""Command lines for tests: in this process, in children of server.py, or from scratch as a user starts them."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from widefield.cli import main

ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(str(ROOT / name) for name in ("runtime", "kernels", "export", "bench"))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATHS}

QUICK = ("--engine", "ort", "--summary", "sampled", "--cells", "16", "--quiet")


@dataclass
class Answer:
    status: int
    out: str
    err: str
    seconds: float = 0.0

    def json(self) -> dict:
        """What a command that did well printed with --json: one object, and nothing else."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    def fault(self) -> str:
        """The one line of a command that failed as a user's mistake should."""
        assert self.status == 1, (self.status, self.err)
        assert self.out == ""
        assert self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        assert self.err.startswith("error: ") and self.err.count(";") >= 1, self.err
        return self.err


class Children:
    """server.py, from this side."""

    def __init__(self) -> None:
        server = [sys.executable, str(Path(__file__).with_name("server.py"))]
        self._process = subprocess.Popen(
            server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )

    def run(
        self, *args: object, signal: int = 0, after: float = 0, once: Path | None = None, there: Path | str = "/",
        limit: int = 0,
    ) -> Answer:  # fmt: skip
        order = {"args": [str(a) for a in args], "signal": signal, "after": after, "limit": limit, "there": str(there)}
        self._process.stdin.write(json.dumps({**order, "once": None if once is None else str(once)}) + "\n")
        self._process.stdin.flush()
        return Answer(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def run(capsys, *args: object) -> Answer:
    """In this process, as the entry point does."""
    capsys.readouterr()
    status = main([str(a) for a in args])
    captured = capsys.readouterr()
    return Answer(status, captured.out, captured.err)


def start(*args: object, **environment: str) -> Answer:
    """A process of its own, as a user's shell starts it."""
    command = [sys.executable, "-m", "widefield.cli", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, **environment}, cwd="/")
    return Answer(done.returncode, done.stdout, done.stderr)
