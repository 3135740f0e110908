"""How well two workers share a picture, and what a shard costs more than in one process: a line of JSON.

    python tests/cluster/measure.py [--bundle B] [--size WxH] [--shard PX] [--rounds N]

Random latents are decoded: by `save` in this process, by one claims worker and by two, each on a core of its own, every
time in fresh processes whose imports are done; seconds are from the first fork to the last exit. `apart` are two who
make a picture each: what the cores can do at once. `efficiency` is half of what one worker took over what two took: of
all, and of the stage of shards alone; `efficiency_over_apart`, half of what those apart took. `overhead` is what one
worker took more than `save`, over the shards. `made`: the shards of two workers. Seconds of the
processor are those of all workers together, and all that counts on a machine that does other things, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("runtime", "kernels")]

import imagecodecs  # noqa: E402, F401
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402, F401
import zarr  # noqa: E402, F401

import widefield  # noqa: E402
from widefield.cluster.join import join  # noqa: E402


def forked(count: int, work) -> tuple[float, list[dict]]:
    """(seconds, what each said) of `count` children that do `work`."""
    with tempfile.TemporaryDirectory() as folder:
        started, pids = time.perf_counter(), []
        for number in range(count):
            pid = os.fork()
            if pid == 0:
                os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})  # a core each
                before = time.process_time()
                said = work()
                Path(folder, str(number)).write_text(json.dumps({**said, "cpu": time.process_time() - before}))
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        seconds = time.perf_counter() - started
        return seconds, [json.loads(Path(folder, str(number)).read_text()) for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default=None)
    parser.add_argument("--size", default="3072x2048")
    parser.add_argument("--shard", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    model = widefield.open(asked.bundle)
    width, height = (int(n) // model.bundle.scale for n in asked.size.split("x"))
    shape = (model.bundle.latent_channels, height, width)
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    options = {
        "engine": "ort", "workers": 1, "summary": "sampled", "cells": 64, "tile": (64, 64), "shard_px": asked.shard,
    }  # fmt: skip

    def saved(path: Path) -> dict:
        return model.decode(latents, **options).save(path / f"{os.getpid()}.zarr").as_dict()

    def joined(path: Path) -> dict:
        return join(model.decode(latents, **options), path).as_dict()

    found: dict[str, list[float]] = {"save": [], "apart": [], "one": [], "two": [], "one_shards": [], "two_shards": []}
    cpu: dict[str, list[float]] = {"save": [], "one": [], "two": []}
    shards, made = 0, []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            place = Path(folder, str(number))
            place.mkdir()
            seconds, said = forked(1, partial(saved, place))
            cpu["save"].append(said[0]["cpu"])
            found["save"].append(seconds)
            seconds, _ = forked(2, partial(saved, place))
            found["apart"].append(seconds)
            for name, count in (("one", 1), ("two", 2)):
                seconds, said = forked(count, partial(joined, place / f"{name}.zarr"))
                found[name].append(seconds)
                found[f"{name}_shards"].append(max(each["stage_seconds"]["shards"] for each in said))
                cpu[name].append(sum(each["cpu"] for each in said))
                made.append([each["shards_made"] for each in said])
                shards = sum(each["shards_made"] for each in said)
    least = {name: round(min(times), 2) for name, times in found.items()}
    said = {
        "size_px": asked.size, "shard_px": asked.shard, "shards": shards, "rounds": asked.rounds,
        "made": made[1::2], "least_seconds": least,
        "least_cpu_seconds": {name: round(min(times), 2) for name, times in cpu.items()},
        "median_seconds": {name: round(statistics.median(times), 2) for name, times in found.items()},
        "efficiency": round(least["one"] / 2 / least["two"], 3),
        "efficiency_over_apart": round(least["apart"] / 2 / least["two"], 3),
        "efficiency_of_shards": round(least["one_shards"] / 2 / least["two_shards"], 3),
        "overhead_ms": round((least["one"] - least["save"]) / shards * 1000, 1),
    }  # fmt: skip
    print(json.dumps(said))


if __name__ == "__main__":
    main()
