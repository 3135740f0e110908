"""Runs a command line in several processes at once and kills them at seeded moments: a JSON line in, a JSON line out.

    args      the command line, without `widefield`
    workers   how many run at the same time
    kills     how many are killed with SIGKILL, a random one at a random moment, up to `longest` seconds after the last;
              another one is started at once
    stop      whether the first worker is stopped (SIGSTOP) once it has claimed a shard, as the run's folder `there`
              says, and goes on when the others are done
    patience  seconds after which those that are left are killed
    seed      of the moments

The answer: statuses of those that were not killed, their stderr, how many were killed, seconds.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import imagecodecs  # noqa: F401 -- so that children need not load it
import onnxruntime  # noqa: F401
import zarr  # noqa: F401

import widefield.cluster.join
import widefield.model  # noqa: F401
from widefield.cli import main


def child(args: list[str], stderr: int) -> None:
    """Become the command; never returns."""
    status = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(stderr, 2)
        status = main(args)
    except BaseException:  # noqa: BLE001 -- it is told
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Crew:
    def __init__(self, order: dict) -> None:
        self.order, self.dice = order, random.Random(order["seed"])
        self.err = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- children write to it
        self.alive: list[int] = []
        self.statuses: list[int] = []
        self.killed = 0

    def start(self) -> None:
        pid = os.fork()
        if pid == 0:
            child(self.order["args"], self.err.fileno())
        self.alive.append(pid)

    def wait(self, seconds: float) -> None:
        """Until then, or until nobody is left."""
        end = time.monotonic() + seconds
        while self.alive and time.monotonic() < end:
            for pid in list(self.alive):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.alive.remove(pid)
                    self.statuses.append(os.waitstatus_to_exitcode(status))
            time.sleep(0.01)

    def kill_one(self) -> None:
        pid = self.dice.choice(self.alive)
        os.kill(pid, signal.SIGKILL)
        self.alive.remove(pid)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == -signal.SIGKILL:
            self.killed += 1
        else:
            self.statuses.append(status)

    def run(self) -> dict:
        started = time.monotonic()
        for _ in range(self.order["workers"]):
            self.start()
        stopped = self.stop_first() if self.order["stop"] else None
        for _ in range(self.order["kills"]):
            self.wait(self.dice.uniform(0, self.order["longest"]))
            if not self.alive:
                break
            self.kill_one()
            self.start()
        self.wait(self.order["patience"])
        if stopped is not None:
            os.kill(stopped, signal.SIGCONT)
            self.alive.append(stopped)
            self.wait(self.order["patience"])
        left = len(self.alive)
        for pid in self.alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.err.seek(0)
        seconds = time.monotonic() - started
        told = {"statuses": self.statuses, "killed": self.killed, "left": left}
        return {**told, "err": self.err.read(), "seconds": seconds}

    def stop_first(self) -> int:
        """Stop the first worker while it is at work; it counts as alive again when it goes on."""
        while not self.claims(self.alive[0]):
            time.sleep(0.005)
        os.kill(self.alive[0], signal.SIGSTOP)
        return self.alive.pop(0)

    def claims(self, pid: int) -> list[Path]:
        """Shards of the picture that a worker has claimed."""
        folder = Path(self.order["there"])
        return [p for p in folder.glob("*/claim-shard-*") if f"-{pid}-" in _text(p)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(Crew(json.loads(line)).run()), flush=True)
