"""How soon many viewers at once are shown tiles of the largest pictures, and in how much memory.

    python -m widefield_bench.serving --what stored --side 32768 --what drawn --memory 1536MiB -o bench/results

stored   a .tif of --side x --side px, made of five tiles of dead leaves at each level, served from the disk.
drawn    --size px by the embedded checkpoint, of which nothing is there at first; whoever asks while --queue tiles wait
         is told to come again (503), and here does not.
Viewers  are in this process and share the machine with the server, which has one of its own: the times have both.
         Each asks for four tiles, --steps times, moving and zooming; by the same seeds, so always for the same tiles.
Counted  requests a second, whatever the answer; `p50_ms` and `p99_ms` of answers with a tile, as viewers see them.
Memory   the server's peak resident set while they look, less what it held before, against what is planned: --memory
         of what draws, and of what does not the part of it that is for serving.
Checked  all answers are 200, or 503 with Retry-After where it draws; no tile was made twice; asked for again when the
         clock was stopped, each has the bytes that it had, and a stored one those that were stored; memory was within
         the plan. Otherwise there is no number.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from widefield.engine import EngineOptions
from widefield.errors import BadRequest, MissingBackend, WidefieldError
from widefield.options import parse_nbytes, parse_size
from widefield.serve.pyramid import Pyramid
from widefield.store import StoreSpec, create_or_resume
from widefield_bench.common import Watched, about, table, write_rows
from widefield_bench.servers import started
from widefield_bench.store import TILE_PX, cut, dead_leaves

if TYPE_CHECKING:
    from widefield_bench.viewers import Load

MIB = 1 << 20
KINDS = 5
LEAST_PX = 2 * TILE_PX
MOST_VIEWERS = 200  # of four connections each: a server takes 1,024
NEEDED = ("httpx", "prometheus_client", "starlette", "uvicorn")
COLUMNS = (
    "what", "size", "viewers", "requests", "tiles", "503", "requests_per_s", "p50_ms", "p99_ms", "grown_mib",
    "budget_mib",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServingCase:
    """One server and its viewers. `size` is (width, height) in pixels; those below `queue` count for "drawn" alone."""

    what: str = "stored"
    size: tuple[int, int] = (32_768, 32_768)
    viewers: int = 64
    steps: int = 40
    queue: int = 0
    memory: str | None = None
    engine: str | None = None
    bundle: str | None = None
    prompt: str | None = None


CASES = {
    "stored": ServingCase(),
    "drawn": ServingCase("drawn", (524_288, 524_288), 64, 2, 8, "1536MiB", "auto", None, "islands"),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found of a case. `again` is of one who looks at every tile once more; `counted` is what the server
    counted: answers with a tile where the picture is stored, tiles made where it is drawn; `stored` has digests, a kind
    each."""

    load: Load
    again: Load
    counted: float
    grown_nbytes: int
    budget_nbytes: int
    stored: tuple[bytes, ...] = ()


def check_installed() -> None:
    """MissingBackend where a library is not there."""
    for name in NEEDED:
        if importlib.util.find_spec(name) is None:
            raise MissingBackend(
                f"the bench of serving needs {name}; wanted the extra 'bench'; pip install 'widefield[bench]'"
            )


def kind(level: int, row: int, column: int) -> int:
    """Which of the five a tile of the stored picture is: another than its neighbours, and those above and below."""
    return (row + 2 * column + level) % KINDS


def store_picture(path: Path, size: tuple[int, int]) -> tuple[bytes, ...]:
    """Write a picture, every level of the same five tiles; gives the digests (SHA-256) of these as they are stored."""
    with create_or_resume(path, StoreSpec(*size, "5e7e")) as store:
        encoded = [store.encode(0, 0, 0, tile) for tile in cut(dead_leaves(4 * TILE_PX), KINDS)]
        for level, it in enumerate(store.levels):
            for row, column in np.ndindex(it.rows, it.columns):
                store.commit(level, row, column, encoded[kind(level, row, column)])
        store.finish()
    return tuple(hashlib.sha256(data).digest() for data in encoded)


def check(case: ServingCase, seen: Seen) -> None:
    """What is wrong is not counted. ValueError that says what was found and what was wanted."""
    load, again = seen.load, seen.again
    allowed = {200} if case.what == "stored" else {200, 503}
    if not load.tiles or not set(load.statuses) <= allowed or load.untold:
        wanted = "200 alone" if case.what == "stored" else "200, or 503 with Retry-After,"
        raise ValueError(f"{case.what}: {load}, {load.untold} without Retry-After; wanted {wanted} and some tiles")
    if set(again.statuses) != {200} or again.tiles != load.tiles:
        raise ValueError(f"{case.what}: asked for again {again}; wanted the same {len(load.tiles)} tiles")
    if load.differing or again.differing:
        raise ValueError(f"{case.what}: {load.differing + again.differing} answers differ from earlier ones of a tile")
    if case.what == "stored":
        answers, wrong = load.statuses[200] + again.statuses[200], misplaced(case.size, seen)
        if seen.counted != answers:
            raise ValueError(f"stored: the server counted {seen.counted:.0f} tiles, its viewers {answers}")
        if wrong:
            raise ValueError(f"stored: {wrong} tiles are not what was stored there")
    elif seen.counted != len(load.tiles):
        raise ValueError(f"drawn: {seen.counted:.0f} tiles were made for {len(load.tiles)}; wanted each once")
    if seen.grown_nbytes >= seen.budget_nbytes:
        raise ValueError(
            f"{case.what}: memory grew by {seen.grown_nbytes / MIB:.0f} MiB; wanted less than the planned "
            f"{seen.budget_nbytes / MIB:.0f}"
        )


def misplaced(size: tuple[int, int], seen: Seen) -> int:
    """How many whole tiles of the stored picture have other bytes than were stored at their places."""
    pyramid = Pyramid(*size, TILE_PX)
    wrong = 0
    for (depth, column, row), digest in seen.load.digests.items():
        level = pyramid.deepest - depth
        box = pyramid.box(level, row, column)
        if (box.height, box.width) == (TILE_PX, TILE_PX):
            wrong += digest != seen.stored[kind(level, row, column)]
    return wrong


def look(case: ServingCase, folder: Path) -> Seen:
    """Start a server, let viewers look, then one at all of it again. The picture and the tiles are kept in `folder`."""
    from widefield.serve.desk import SERVER_NBYTES
    from widefield_bench.viewers import AT_ONCE, look_again, metric, pan

    stored: tuple[bytes, ...] = ()
    if case.what == "stored":
        path, budget_nbytes = folder / "served.tif", SERVER_NBYTES
        stored = store_picture(path, case.size)
        args: tuple[object, ...] = (path, "--queue", AT_ONCE * case.viewers)
    else:
        budget_nbytes = parse_nbytes(str(case.memory))
        args = (case.prompt, "--size", "{}x{}".format(*case.size), "--memory", case.memory, "--queue", case.queue)
        args += ("--engine", case.engine, *(() if case.bundle is None else ("--bundle", case.bundle)))
    with started(*args, cache=folder / "cache") as server:
        with Watched(server.process.pid) as memory:
            load = pan(server.url, server.picture, viewers=case.viewers, steps=case.steps)
            again = look_again(server.url, server.picture, load)
        if case.what == "stored":
            counted = metric(server.url, "widefield_tile_seconds_count")
        else:
            begun, dropped = (metric(server.url, f"widefield_tiles_{what}_total") for what in ("begun", "dropped"))
            counted = begun - dropped
    return Seen(load, again, counted, memory.grown_nbytes, budget_nbytes, stored)


def bench_serving(case: ServingCase, folder: Path) -> dict[str, Any]:
    """One row. `folder` is empty. BadRequest, MissingBackend, ServerFailed; ValueError where an answer is wrong."""
    check_installed()
    if min(case.size) < LEAST_PX:
        raise BadRequest(
            f"{case.size[0]} x {case.size[1]} px are too few to pan over; wanted sides of {LEAST_PX} px or more; raise "
            "--side or --size"
        )
    seen = look(case, folder)
    check(case, seen)
    load, requests = seen.load, seen.load.statuses.total()
    engine = None if case.engine is None else EngineOptions(case.engine).resolved().backend
    return {
        **asdict(case),
        "engine": engine,
        "requests": requests,
        "statuses": {str(status): count for status, count in sorted(load.statuses.items())},
        "tiles": len(load.tiles),
        "seconds": round(load.seconds, 2),
        "requests_per_s": round(requests / load.seconds, 1),
        "p50_ms": round(load.at(50), 1),
        "p99_ms": round(load.at(99), 1),
        "grown_mib": -(-seen.grown_nbytes // MIB),
        "budget_mib": seen.budget_nbytes // MIB,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the cases asked for: a table on stderr, JSON on stdout. 1, and a line, where a server cannot be had."""
    stored, drawn = CASES["stored"], CASES["drawn"]
    parser = argparse.ArgumentParser(prog="python -m widefield_bench.serving", description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--what", action="append", choices=tuple(CASES), help="repeat; default: both")
    parser.add_argument("--side", type=_number(1), default=stored.size[0], help="of `stored`, pixels (%(default)s)")
    parser.add_argument("--size", default="{}x{}".format(*drawn.size), help="WIDTHxHEIGHT of `drawn` (%(default)s)")
    parser.add_argument("--viewers", type=_number(1, MOST_VIEWERS), default=stored.viewers, help="(%(default)s)")
    parser.add_argument("--steps", type=_number(1), help=f"of each ({stored.steps}; `drawn` {drawn.steps})")
    parser.add_argument("--memory", default=drawn.memory, help="of `drawn` (%(default)s)")
    parser.add_argument("--queue", type=_number(1), default=drawn.queue, help="of `drawn`, tiles (%(default)s)")
    parser.add_argument("--engine", default=drawn.engine, help="of `drawn` (%(default)s)")
    parser.add_argument("--bundle", help="of `drawn`; default: the embedded one")
    parser.add_argument("--folder", type=Path, help="where pictures and tiles go (a temporary folder)")
    parser.add_argument("-o", "--out", type=Path, help="folder for serving.json")
    asked = parser.parse_args(argv)
    head, rows = about(), []  # the machine's load is that before ours
    try:
        cases = {
            "stored": replace(stored, size=(asked.side, asked.side)),
            "drawn": replace(drawn, size=parse_size(asked.size), memory=asked.memory, queue=asked.queue,
                             engine=asked.engine, bundle=asked.bundle),
        }  # fmt: skip
        for what in asked.what or CASES:
            case = replace(cases[what], viewers=asked.viewers, steps=asked.steps or cases[what].steps)
            with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
                rows.append(bench_serving(case, Path(folder)))
    except WidefieldError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    if asked.out is not None:
        write_rows(asked.out / "serving.json", rows, head)
    print(table([_flat(row) for row in rows], COLUMNS), file=sys.stderr)
    print(json.dumps({**head, "results": rows}))
    return 0


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, **row["statuses"], "size": "{} x {}".format(*row["size"])}


def _number(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text}; wanted {least} to {most}")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
