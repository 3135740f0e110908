"""What two workers of one picture do more than one, and what both do more than one process: a line of JSON.

    python tests/cluster/measure.py [--bundle B] [--size WxH] [--shard PX] [--rounds N] [--draw]

Random latents are decoded, or with `--draw` a prompt is drawn: by one process that does `save`, by `one` claims worker
and by `two`, each on a core of its own, every time in fresh processes whose imports are done. `apart` are two processes
that save a picture each and share nothing: what both cores can do at once. What was counted is in counted.py; of two
workers it is the sum, and `seconds` those of the later one. Of all rounds the one that took least of the processor
counts. `stages`: of each worker, and in each what it took and did.

`efficiency` is half of what one worker took over what two took, by the wall clock, and depends on all else that the
machine does. `by_processor` does not: there a stage ends when the worker that computed longest in it, in seconds of the
processor, has computed; it is what cores of their own would give, but for the time to see that others are done.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / name) for name in ("runtime", "kernels", "tests")]

import imagecodecs  # noqa: E402, F401
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402, F401
import zarr  # noqa: E402, F401

import widefield  # noqa: E402
from cluster.counted import Counted, together  # noqa: E402
from widefield.cluster.join import join  # noqa: E402

PROMPT = "islands at dawn"


def forked(count: int, work) -> list[dict]:
    """What each of `count` children that do `work` counted."""
    with tempfile.TemporaryDirectory() as folder:
        pids = []
        for number in range(count):
            pid = os.fork()
            if pid == 0:
                os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})  # a core each
                counted = Counted()
                said = work()
                told = {"all": counted.all(), "stages": counted.stages, "shards": said.get("shards_made")}
                Path(folder, str(number)).write_text(json.dumps(told))
                os._exit(0)
            pids.append(pid)
        for pid in pids:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        return [json.loads(Path(folder, str(number)).read_text()) for number in range(count)]


def used(workers: list[dict]) -> float:
    """Seconds of the processor, of all workers."""
    return sum(used_in(each["all"]) for each in workers)


def used_in(counted: dict) -> float:
    return counted["user"] + counted["system"]


def longest(workers: list[dict]) -> float:
    """Seconds of the processor until the last one is done: of each stage the most, and of what is outside of stages."""
    stages = [{name: used_in(stage) for name, stage in each["stages"].items()} for each in workers]
    outside = [used([each]) - sum(known.values()) for each, known in zip(workers, stages, strict=True)]
    names = {name for known in stages for name in known}  # one that came late found some done
    return max(outside) + sum(max(known.get(name, 0.0) for known in stages) for name in names)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", default=None)
    parser.add_argument("--size", default="3072x2048")
    parser.add_argument("--shard", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args()
    model = widefield.open(asked.bundle)
    size = tuple(int(n) for n in asked.size.split("x"))
    options = {"engine": "ort", "workers": 1, "shard_px": asked.shard}
    if asked.draw:
        picture = partial(model.generate, PROMPT, size=size, seed=3, **options)
    else:
        shape = (model.bundle.latent_channels, *(n // model.bundle.scale for n in reversed(size)))
        latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        picture = partial(model.decode, latents, summary="sampled", cells=64, tile=(64, 64), **options)

    def saved(path: Path) -> dict:
        return picture().save(path.with_name(f"{os.getpid()}.zarr")).as_dict()

    def joined(path: Path) -> dict:
        return join(picture(), path).as_dict()

    rounds: dict[str, list[list[dict]]] = {"save": [], "one": [], "two": [], "apart": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            for name, count, work in (("save", 1, saved), ("one", 1, joined), ("two", 2, joined), ("apart", 2, saved)):
                place = Path(folder, f"{number}-{name}")
                place.mkdir()
                rounds[name].append(forked(count, partial(work, place / "picture.zarr")))
    best = {name: min(all_, key=used) for name, all_ in rounds.items()}
    cpu = {name: round(used(workers), 2) for name, workers in best.items()}
    said = {
        "size_px": asked.size, "shard_px": asked.shard, "drawn": asked.draw, "rounds": asked.rounds,
        "cpu_seconds": cpu,
        "cpu_seconds_of_rounds": {name: [round(used(workers), 2) for workers in all_] for name, all_ in rounds.items()},
        "efficiency": round(best["one"][0]["all"]["seconds"] / 2 / max(w["all"]["seconds"] for w in best["two"]), 3),
        "by_processor": round(used(best["one"]) / 2 / longest(best["two"]), 3),
        "shards": [each["shards"] for each in best["two"]],
        **{name: together([each["all"] for each in workers]) for name, workers in best.items()},
        "stages": {name: [each["stages"] for each in best[name]] for name in ("one", "two")},
    }  # fmt: skip
    print(json.dumps(said))


if __name__ == "__main__":
    main()
