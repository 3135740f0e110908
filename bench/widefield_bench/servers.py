"""`widefield serve` in a process of its own, on loopback and any free port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from widefield.errors import WidefieldError
from widefield_bench.common import child_environment


class ServerFailed(WidefieldError):
    """A server that did not start or did not end well; what it said."""


class Process:
    """`widefield serve ARGS`, as a user starts it. `url` without the last slash; `picture` the id of the first.

    `cache` is what it takes for the user's cache folder. ServerFailed where it does not start.
    """

    def __init__(self, *args: object, cache: Path) -> None:
        command = [sys.executable, "-m", "widefield.cli", "serve", *map(str, args), "--port", "0", "--json"]
        env = child_environment() | {"XDG_CACHE_HOME": str(cache)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        self.said: str | None = None
        lines = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        else:
            _, err = self.process.communicate()
            raise ServerFailed(err.strip().removeprefix("error: "))
        said = json.loads("".join(lines))
        self.url, self.picture = said["url"].rstrip("/"), said["picture"]

    def stop(self) -> tuple[int, str]:
        """(status, what it said on stderr) after Ctrl-C. ServerFailed where it printed more than its address."""
        if self.said is None:
            os.kill(self.process.pid, signal.SIGINT)
            out, self.said = self.process.communicate(timeout=60)
            if out:
                raise ServerFailed(f"it printed {out!r}; wanted its address alone")
        return self.process.returncode, self.said


@contextmanager
def started(*args: object, cache: Path) -> Iterator[Process]:
    """A process that is stopped afterwards. ServerFailed unless it then ended well and said nothing of a fault."""
    process = Process(*args, cache=cache)
    try:
        yield process
    finally:
        status, err = process.stop()
    if status or "Traceback" in err or "ERROR" in err:
        raise ServerFailed(f"it ended with {status} and said: {err}")
