"""How fast a whole pyramid reaches the disk, and in how much memory.

    python -m widefield_bench.store --side 16384 --side 131072 --threads 2 --form .tif

Content  32 crops of 512 x 512 from one 4096 x 4096 dead-leaves picture with sensor noise, made before the clock starts,
         and each one's half, which a decode's epilogue makes with the pixels: the writer halves all further levels.
Counted  Mpx of level 0; the pyramid and everything on disk are in the time, and so is the wait for the last thread.
Memory   peak resident set, less what the process held before the store was opened.
Ceiling  `encoder_mpx_per_s` is what so many threads do that encode the same tiles and their parents, and nothing else.
Checked  before anything is timed, a small picture is written and every level of it is compared with the formula.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from widefield.store import PyramidWriter, StoreSpec, create_or_resume, open_store
from widefield.store.box import Pixels, box_reference
from widefield_bench.common import Watched, about, write_rows

TILE_PX = 512


@dataclass(frozen=True, slots=True)
class StoreCase:
    """One run: a square picture of `side_px`, a form by its suffix, a codec, and threads that encode."""

    side_px: int = 16_384
    form: str = ".tif"
    codec: str = "auto"
    threads: int = 2


def dead_leaves(side_px: int = 4096, *, seed: int = 0) -> Pixels:
    """(side, side, 3): discs over discs, radii by a power law, shaded, under noise: a photograph to a codec."""
    rng = np.random.default_rng(seed)
    picture = np.empty((side_px, side_px, 3), np.float32)
    picture[...] = rng.uniform(40, 200, 3)
    smallest, largest = 6.0, side_px / 8
    for _ in range(side_px * side_px // 4000):
        radius = (smallest**-2 - rng.random() * (smallest**-2 - largest**-2)) ** -0.5
        y, x = rng.uniform(0, side_px, 2)
        top, left = max(0, int(y - radius)), max(0, int(x - radius))
        part = picture[top : int(y + radius) + 1, left : int(x + radius) + 1]
        dy = np.arange(top, top + part.shape[0], dtype=np.float32)[:, None] - np.float32(y)
        dx = np.arange(left, left + part.shape[1], dtype=np.float32) - np.float32(x)
        shade = rng.uniform(-0.3, 0.3, 2)
        grey = rng.uniform(20, 230)
        color = np.clip(grey + rng.normal(0, 20, 3), 0, 255).astype(np.float32)
        value = color + (shade[0] * dy + shade[1] * dx).astype(np.float32)[..., None]
        np.copyto(part, value, where=(dy * dy + dx * dx < radius * radius)[..., None])
    picture += rng.normal(0, 2.0, (side_px, side_px, 1)).astype(np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def cut(base: Pixels, count: int, *, seed: int = 0) -> list[Pixels]:
    """`count` tiles from anywhere in `base`."""
    corners = np.random.default_rng(seed).integers(0, len(base) - TILE_PX + 1, (count, 2))
    return [np.ascontiguousarray(base[y : y + TILE_PX, x : x + TILE_PX]) for y, x in corners]


def check(tiles: Sequence[Pixels], folder: Path) -> None:
    """What is wrong is not timed: 2 x 2 tiles, lossless, every level as the formula has it. ValueError if not."""
    path = folder / "check.tif"
    spec = StoreSpec(2 * TILE_PX, 2 * TILE_PX, "c4ec", codec="lossless")
    with create_or_resume(path, spec) as store, PyramidWriter(store, threads=2) as writer:
        for row, column in writer.missing():
            writer.put(row, column, tiles[2 * row + column])
    whole = np.concatenate([np.concatenate(tiles[0:2], axis=1), np.concatenate(tiles[2:4], axis=1)])
    with open_store(path) as store:
        for (row, column), _ in np.ndenumerate(store.done(0)):
            place = whole[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX]
            if not np.array_equal(store.read(0, row, column), place):
                raise ValueError(f"tile {row},{column} is not what was put")
        if not np.array_equal(store.read(1, 0, 0), box_reference(whole)):
            raise ValueError("level 1 is not the box mean of level 0")
    path.unlink()


def encoder_mpx_per_s(case: StoreCase, tiles: Sequence[Pixels], folder: Path, *, calls: int = 1500) -> float:
    """Of level 0, if a pyramid's tiles had but to be encoded: so many calls a thread, and a third more for parents."""
    parents = []
    for n in range(0, len(tiles), 4):
        a, b, c, d = (box_reference(tile) for tile in tiles[n : n + 4])
        parents.append(np.concatenate([np.concatenate([a, b], axis=1), np.concatenate([c, d], axis=1)]))

    with create_or_resume(folder / f"alone{case.form}", StoreSpec(TILE_PX, TILE_PX, "a10e", codec=case.codec)) as store:

        def work() -> None:
            for n in range(calls):
                store.encode(0, 0, 0, tiles[n % len(tiles)])
                if n % 3 == 0:
                    store.encode(0, 0, 0, parents[n // 3 % len(parents)])

        threads = [threading.Thread(target=work) for _ in range(case.threads)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return case.threads * calls * TILE_PX**2 / 1e6 / (time.perf_counter() - start)


def bench_store(case: StoreCase, tiles: Sequence[Pixels], folder: Path) -> dict[str, object]:
    """Write one picture from `tiles`, again and again, into `folder`, and say how that went. The picture is deleted."""
    path = folder / f"bench{case.form}"
    spec = StoreSpec(case.side_px, case.side_px, "be9c", codec=case.codec)
    halves = [box_reference(tile) for tile in tiles]
    ceiling = encoder_mpx_per_s(case, tiles, folder)
    with Watched() as memory:
        start, cpu = time.perf_counter(), time.process_time()
        with create_or_resume(path, spec) as store, PyramidWriter(store, threads=case.threads) as writer:
            for number, (row, column) in enumerate(writer.missing()):
                writer.put(row, column, tiles[number % len(tiles)], half=halves[number % len(tiles)])
            writer.close()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    mpx = case.side_px**2 / 1e6
    return {
        **asdict(case),
        "mpx_per_s": round(mpx / seconds, 1),
        "mpx_per_cpu_s": round(mpx / cpu, 1),
        "encoder_mpx_per_s": round(ceiling, 1),
        "cpus_given": round(cpu / seconds, 2),
        "encode_share": round(writer.encode_seconds / seconds / case.threads, 2),
        "bits_per_px": round(writer.bytes_written * 8 / mpx / 1e6, 2),
        "rss_above_idle_mib": round(memory.grown_nbytes / 2**20, 1),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Time the cases asked for: a table on stderr, JSON on stdout."""
    defaults = StoreCase()
    parser = argparse.ArgumentParser(prog="python -m widefield_bench.store", description=__doc__.partition("\n")[0])
    parser.add_argument("--side", type=int, action="append", help=f"pixels, may be repeated ({defaults.side_px})")
    parser.add_argument("--form", action="append", help=f".tif, .zarr, .dzi; may be repeated ({defaults.form})")
    parser.add_argument("--codec", default=defaults.codec, help="%(default)s")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="that encode (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="folder for store.json")
    parser.add_argument("--folder", type=Path, default=None, help="where the pictures go (a temporary folder)")
    options = parser.parse_args(argv)
    tiles = cut(dead_leaves(), 32)
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        check(tiles, Path(name))
        for form in options.form or [defaults.form]:
            for side in options.side or [defaults.side_px]:
                case = StoreCase(side, form, options.codec, options.threads)
                result = bench_store(case, tiles, Path(name))
                results.append(result)
                print("  ".join(f"{key} {value}" for key, value in result.items()), file=sys.stderr)
                _clear(Path(name))
    if options.output is not None:
        write_rows(options.output / "store.json", results, about())
    print(json.dumps({**about(), "results": results}))
    return 0


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


if __name__ == "__main__":
    sys.exit(main())
