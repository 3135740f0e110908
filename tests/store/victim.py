"""A process that writes pictures and dies on demand. Not a test: test_kill.py and test_faults.py drive it.

It imports once and forks for every order that it reads (a line of JSON), so a death costs milliseconds:

    path, width, height, tile, codec, threads
    seed      shuffles the order of tiles; 0: Morton order
    die_at    the number of the system call at which SIGKILL comes; 0 for never
    limit     RLIMIT_FSIZE, bytes; 0 for none
    delay     seconds until the parent sends it `signal`, 0 for never

The answer is a line of JSON with what the child said as far as it got: `written`, the level-0 tiles that it committed;
`error`; `killed`; and `calls`, how many system calls it made, to the last ten.
"""

import itertools
import json
import os
import resource
import signal
import sys
import time
import traceback

import numpy as np

import widefield.store.omezarr
from store.pictures import fill, picture
from widefield.errors import WidefieldError
from widefield.store import StoreSpec, codecs, create_or_resume

SHARD_PX = 128  # four tiles a side, so that a small picture has many shards


def count_calls(die_at: int, say) -> None:
    """Die at call number `die_at`: before it, after it or, where it writes much, when half is written."""
    calls = itertools.count(1)

    def counted(call):
        def wrapped(*args, **kwargs):
            number = next(calls)
            if number == die_at:
                if call is pwrite and die_at % 3 == 0 and len(args[1]) > 4096:
                    pwrite(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                elif die_at % 3 == 1:
                    call(*args, **kwargs)
                os.kill(os.getpid(), signal.SIGKILL)
            if number % 10 == 0:
                say(calls=number)
            return call(*args, **kwargs)

        return wrapped

    pwrite = os.pwrite
    for name in ("pwrite", "replace", "unlink", "rename"):
        setattr(os, name, counted(getattr(os, name)))


def run(order: dict, say) -> None:
    widefield.store.omezarr.SHARD_PX = SHARD_PX
    count_calls(order["die_at"], say)
    if order["limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"], order["limit"]))
    spec = StoreSpec(order["width"], order["height"], "5eed", codec=order["codec"], tile_px=order["tile"])
    image = picture(order["width"], order["height"])
    shuffle = np.random.default_rng(order["seed"]).permutation if order["seed"] else None
    try:
        with create_or_resume(order["path"], spec) as store:
            commit = store.commit

            def said(level, row, column, data):
                commit(level, row, column, data)
                say(**({"written": [row, column]} if level == 0 else {}))

            store.commit = said
            fill(store, image, order=shuffle, threads=order["threads"])
    except WidefieldError as error:
        say(error=str(error))


def child(order: dict, pipe: int) -> None:
    def say(**facts):
        os.write(pipe, json.dumps(facts).encode() + b"\n")

    try:
        run(order, say)
    except KeyboardInterrupt:
        say(error="interrupted")
    except BaseException:  # noqa: BLE001  a child has nobody else to tell
        say(crash=traceback.format_exc())
        os._exit(3)
    os._exit(0)


def obey(order: dict) -> dict:
    out, pipe = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
        os.close(out)
        child(order, pipe)
    os.close(pipe)
    if order["delay"]:
        time.sleep(order["delay"])
        os.kill(pid, order["signal"])
    with os.fdopen(out, "rb") as file:
        facts = [json.loads(line) for line in file.read().splitlines()]
    _, status = os.waitpid(pid, 0)
    answer = {"killed": os.WIFSIGNALED(status), "calls": max((f["calls"] for f in facts if "calls" in f), default=0)}
    answer["written"] = [f["written"] for f in facts if "written" in f]
    for name in ("error", "crash"):
        answer[name] = next((f[name] for f in facts if name in f), None)
    return answer


if __name__ == "__main__":
    codecs.encode("jpeg", np.zeros((16, 16, 3), np.uint8), 90)  # import what a child would
    for line in sys.stdin:
        print(json.dumps(obey(json.loads(line))), flush=True)
