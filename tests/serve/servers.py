"""Servers for tests: in a thread of this process, or in a process of their own, on loopback and any free port."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from house.places import environment
from widefield.serve.app import Site, build
from widefield.serve.gallery import Gallery
from widefield.serve.guard import LOOPBACK
from widefield.serve.run import Address, configured


@contextmanager
def running(gallery: Gallery) -> Iterator[str]:
    """The gallery's server in a thread; its URL without the last slash."""
    with Address("127.0.0.1", 0).listen() as listening:
        server: uvicorn.Server
        site = Site(gallery, lambda: server.should_exit)
        server = uvicorn.Server(configured(build(site, LOOPBACK), "critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Process:
    """`widefield serve ARGS`, as a user starts it. `url` without the last slash; `picture` the id of the first."""

    def __init__(self, *args: object, cache: Path) -> None:
        command = [sys.executable, "-m", "widefield.cli", "serve", *map(str, args), "--port", "0", "--json"]
        env = environment() | {"XDG_CACHE_HOME": str(cache)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.said: str | None = None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        else:
            raise AssertionError(self.process.stderr.read())
        said = json.loads("".join(lines))
        self.url, self.picture = said["url"].rstrip("/"), said["picture"]

    def resident_nbytes(self, which: str = "VmRSS") -> int:
        """What it has in memory: "VmRSS" now, "VmHWM" at most since `forget_peak`."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{which}:")).split()[1]) * 1024

    def forget_peak(self) -> None:
        """Let VmHWM begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def stop(self) -> tuple[int, str]:
        """(status, what it said on stderr) after Ctrl-C."""
        if self.said is None:
            os.kill(self.process.pid, signal.SIGINT)
            out, self.said = self.process.communicate(timeout=60)
            assert out == ""
        return self.process.returncode, self.said


@contextmanager
def started(*args: object, cache: Path) -> Iterator[Process]:
    """A process that is stopped afterwards, and must have ended well and said nothing of a fault."""
    process = Process(*args, cache=cache)
    try:
        yield process
    finally:
        status, err = process.stop()
    assert status == 0, err
    assert "Traceback" not in err and "ERROR" not in err, err
