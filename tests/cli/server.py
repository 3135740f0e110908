"""Runs command lines in children of its own, which start at once and can be killed: a JSON line in, a JSON line out.

    args      the command line, without `widefield`
    limit     RLIMIT_FSIZE in bytes; 0 for none
    signal    what to send, `after` seconds after `once`, a store, has its first tile, or `there`, a path, is there (at
              once without either)

The answer: status (negative: the signal it died of), out, err, seconds.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import imagecodecs  # noqa: F401 -- so that children need not load it
import onnxruntime  # noqa: F401

import widefield.model  # noqa: F401
from widefield.cli import main
from widefield.errors import StoreError
from widefield.store import open_store


def child(order: dict, streams: tuple[int, int]) -> None:
    """Become the command; never returns."""
    status = 70
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, stream in enumerate(streams, 1):
            os.dup2(stream, number)
        if order["limit"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
        status = main(order["args"])
    except BaseException:  # noqa: BLE001 -- it is printed, as Python would
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def has_a_tile(path: Path) -> bool:
    try:
        with open_store(path) as store:
            return bool(store.done(0).any())
    except StoreError:
        return False


def strike(pid: int, order: dict, over: threading.Event) -> None:
    """Send the signal when its time has come, unless the child is over."""
    while (order["once"] and not has_a_tile(Path(order["once"]))) or not Path(order["there"]).exists():
        if over.wait(0.005):
            return
    if not over.wait(order["after"]):
        os.kill(pid, order["signal"])


def run(order: dict) -> dict:
    pipes = [os.pipe(), os.pipe()]  # not files, which `limit` would cut; what a command says fits in a pipe
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        child(order, (pipes[0][1], pipes[1][1]))
    for _, end in pipes:
        os.close(end)
    over = threading.Event()
    striker = threading.Thread(target=strike, args=(pid, order, over))
    if order["signal"]:
        striker.start()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie, so that its number is not another's
    over.set()
    if order["signal"]:
        striker.join()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.perf_counter() - started
    texts = []
    for end, _ in pipes:
        with os.fdopen(end) as stream:
            texts.append(stream.read())
    return {"status": status, "out": texts[0], "err": texts[1], "seconds": seconds}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
