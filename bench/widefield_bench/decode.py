"""Our decode beside diffusers': the same weights, latents and threads, in turns, each run in a fresh process.

    python -m widefield_bench.decode --size 2048 --size 4096 -o bench/results/

Who       diffusers untiled and `enable_tiling` with 64-latent tiles; widefield on ONNX Runtime and on OpenVINO, float32
          and bfloat16, each a whole `Picture.save` to a .tif: summary measured, encoded, pyramid written.
Counted   Mpx over wall time and over CPU time, of decode or save alone: imports and loading are left out on both sides.
          CPU time is the number to compare on a machine that is shared. Of several rounds, the median.
Checked   before anything is timed: ours, lossless, against untiled (>= 45 dB, or the run ends); peers finite.
Memory    the peak of the resident set over what the process held before, weights loaded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield_bench.common import about, child_environment, forget_peak, machine, resident_nbytes, table, write_rows

LEAST_DB = 45.0
TILE_CELLS = 64
CHECKPOINT = Path(__file__).parents[2] / "export" / "embedded" / "vae"
PEERS = ("untiled", "tiled")
OURS = ("ort f32", "openvino f32", "openvino bf16")


@dataclass(frozen=True, slots=True)
class DecodeCase:
    """One way to decode one array of latents. `keep` is where the level-0 pixels go, as .npy, for a check."""

    who: str
    latents: str
    threads: int = 2
    checkpoint: str = str(CHECKPOINT)
    bundle: str | None = None
    memory: str = "2GiB"
    keep: str | None = None


def run_case(case: DecodeCase, *, timeout_s: float = 3600) -> dict[str, Any]:
    """Decode in a fresh process and say how that went."""
    done = subprocess.run(
        [sys.executable, "-m", "widefield_bench.decode", "--child", json.dumps(asdict(case))],
        env=child_environment(), stdout=subprocess.PIPE, text=True, check=True, timeout=timeout_s,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[float, int]:
    """(decibels, largest difference) of two pictures, row by row in bounded memory."""
    total, largest = 0, 0
    for one, other in zip(a, b, strict=True):
        difference = np.abs(one.astype(np.int32) - other)
        total += int((difference.astype(np.int64) ** 2).sum())
        largest = max(largest, int(difference.max(initial=0)))
    return (math.inf if total == 0 else 10 * math.log10(255**2 * a.size / total)), largest


def _child(case: DecodeCase) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))[: case.threads]
    os.sched_setaffinity(0, cores)
    return _peer(case) if case.who in PEERS else _ours(case)


def _peer(case: DecodeCase) -> dict[str, Any]:
    import torch
    from diffusers import AutoencoderKL

    from widefield_export.families import latent_affine

    torch.set_num_threads(case.threads)
    vae = AutoencoderKL.from_pretrained(case.checkpoint, low_cpu_mem_usage=False).eval()
    if case.who == "tiled":
        vae.enable_tiling()
        vae.tile_latent_min_size = TILE_CELLS
        vae.tile_sample_min_size = TILE_CELLS * 2 ** (len(vae.config.block_out_channels) - 1)
    mean, std = latent_affine(vae)
    z = torch.from_numpy(np.load(case.latents).astype(np.float32))[None] * std + mean
    idle = resident_nbytes()
    forget_peak()
    started, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        x = vae.decode(z).sample[0]
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resident_nbytes("VmHWM") - idle
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{case.who} gave values that are not numbers")
    if case.keep is not None:
        np.save(case.keep, ((x.permute(1, 2, 0) + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).numpy())
    return {"mpx": x.shape[1] * x.shape[2] / 1e6, "seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak / 2**20}


def _ours(case: DecodeCase) -> dict[str, Any]:
    import importlib

    import widefield.model
    from widefield.store import open_store

    engine, _, precision = case.who.partition(" ")
    for name in {"onnxruntime", "onnxruntime" if engine == "ort" else engine}:
        importlib.import_module(name)
    loading = time.perf_counter()
    model = widefield.model.open(case.bundle)
    picture = model.decode(
        case.latents, engine=engine, precision=precision, memory=case.memory,
        codec="auto" if case.keep is None else "lossless",
    )  # fmt: skip
    loaded = time.perf_counter() - loading
    idle = resident_nbytes()
    forget_peak()
    measured_cpu = 0.0

    def talk(*_: object) -> None:
        nonlocal measured_cpu
        measured_cpu = time.process_time() - cpu

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.tif"
        started, cpu = time.perf_counter(), time.process_time()
        saved = picture.save(path, talk=talk)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        peak = resident_nbytes("VmHWM") - idle
        if case.keep is not None:
            with open_store(path) as store:
                height, width, _ = picture.shape
                pixels = np.empty((height, width, 3), np.uint8)
                side = store.spec.tile_px
                for (row, column), _ in np.ndenumerate(store.done(0)):
                    part = store.read(0, row, column)
                    y, x = row * side, column * side
                    pixels[y : y + part.shape[0], x : x + part.shape[1]] = part[: height - y, : width - x]
            np.save(case.keep, pixels)
    mpx = picture.shape[0] * picture.shape[1] / 1e6
    return {
        "mpx": mpx,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": peak / 2**20,
        "measure_seconds": saved.measure_seconds,
        "measure_cpu_seconds": measured_cpu,
        "stream_seconds": seconds - saved.measure_seconds,
        "stream_cpu_seconds": cpu_seconds - measured_cpu,
        "engine_share": saved.engine_share,
        "open_seconds": loaded,
        "tile_cells": saved.plan.tile[0],
        "workers": saved.plan.workers,
        "method": saved.plan.method,
        "flops_over_untiled": saved.plan.overhead,
        "planned_mib": saved.plan.peak_nbytes() / 2**20,
        "bits_per_px": saved.bytes_written * 8 / mpx / 1e6,
    }


def side_by_side(
    base: DecodeCase, whose: Sequence[str], *, rounds: int, check_against_untiled: bool
) -> list[dict[str, Any]]:
    """Check, then time every way in turns; a row each, of medians. ValueError where ours is another picture."""
    checks = _checked(base, whose) if check_against_untiled else {}
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in whose}
    loads = []
    for number in range(rounds):
        for who in whose if number % 2 == 0 else reversed(whose):
            loads.append(machine()["load_average"][0])
            found[who].append(run_case(replace(base, who=who)))
            print(f"{who}: {found[who][-1]['cpu_seconds']:.1f} CPU s", file=sys.stderr)
    rows = []
    for who, runs in found.items():
        row: dict[str, Any] = {"who": who, "rounds": rounds, "load_average": [min(loads), max(loads)]}
        for key, value in runs[0].items():
            row[key] = statistics.median(run[key] for run in runs) if isinstance(value, float) else value
        row["mpx_per_s"] = row["mpx"] / row["seconds"]
        row["mpx_per_cpu_s"] = row["mpx"] / row["cpu_seconds"]
        if "stream_seconds" in row:
            row["stream_mpx_per_s"] = row["mpx"] / row["stream_seconds"]
            row["stream_mpx_per_cpu_s"] = row["mpx"] / row["stream_cpu_seconds"]
        for peer in PEERS:
            if found.get(peer) and peer != who:  # pairs of the same round
                for unit, name in (("cpu_seconds", "cpu"), ("seconds", "wall")):
                    pairs = zip(found[peer], runs, strict=True)
                    row[f"over_{peer}_{name}"] = statistics.median(p[unit] / r[unit] for p, r in pairs)
        rows.append({**row, **checks.get(who, {})})
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def _checked(base: DecodeCase, whose: Sequence[str]) -> dict[str, dict[str, Any]]:
    """PSNR and largest difference against untiled, of everybody else."""
    checks: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "untiled.npy"
        run_case(replace(base, who="untiled", keep=str(truth)))
        for who in whose:
            if who == "untiled":
                continue
            mine = Path(folder) / "mine.npy"
            run_case(replace(base, who=who, keep=str(mine)))
            decibels, largest = psnr(np.load(mine, mmap_mode="r"), np.load(truth, mmap_mode="r"))
            checks[who] = {"psnr_db": round(decibels, 2), "largest_difference": largest}
            print(f"{who}: {decibels:.1f} dB, at most {largest} from untiled", file=sys.stderr)
            if who in OURS and decibels < LEAST_DB:
                raise ValueError(f"{who} is {decibels:.1f} dB from untiled; wanted {LEAST_DB}; nothing was timed")
    return checks


def photographs(cells: int, folder: Path, bundle: str | None) -> Path:
    """Latents of a square of photographs that scikit-image ships, each turned and dimmed in its own way."""
    import skimage.data

    import widefield.model

    rng = np.random.default_rng(3)
    whole = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    side = min(cells * 8, 2048)
    picture = np.empty((side, side, 3), np.uint8)
    piece = 256
    for y in range(0, side, piece):
        for x in range(0, side, piece):
            photograph = whole[rng.integers(len(whole))]
            top, left = (int(rng.integers(0, n - piece + 1)) for n in photograph.shape[:2])
            part = photograph[top : top + piece, left : left + piece][:, :: rng.choice((-1, 1))]
            picture[y : y + piece, x : x + piece] = (part * rng.uniform(0.3, 1.0))[: side - y, : side - x]
    latents = np.asarray(widefield.model.open(bundle).encode(picture))
    times = -(-cells // latents.shape[1])
    path = folder / f"latents{cells}.npy"
    np.save(path, np.tile(latents, (1, times, times))[:, :cells, :cells])
    return path


COLUMNS = (
    "size_px", "who", "mpx_per_s", "mpx_per_cpu_s", "over_tiled_cpu", "over_tiled_wall", "over_untiled_cpu",
    "stream_mpx_per_cpu_s", "measure_cpu_seconds", "engine_share", "tile_cells", "flops_over_untiled", "peak_mib",
    "psnr_db", "largest_difference",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Time the sizes asked for: JSON into a folder, a table on stdout."""
    defaults = DecodeCase("", "")
    parser = argparse.ArgumentParser(prog="python -m widefield_bench.decode", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, action="append", help="side in pixels, may be repeated (2048)")
    parser.add_argument("--latents", type=Path, help=".npy, tiled to each size (encoded photographs)")
    parser.add_argument("--bundle", help="the same weights, exported (the embedded one)")
    parser.add_argument("--checkpoint", default=defaults.checkpoint, help="a diffusers folder (%(default)s)")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="%(default)s")
    parser.add_argument("--memory", default=defaults.memory, help="of ours (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="%(default)s")
    parser.add_argument("--untiled-up-to", type=int, default=2048, help="pixels; past it untiled is left out")
    parser.add_argument("--who", action="append", help=f"{', '.join(PEERS + OURS)}; may be repeated (all)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, help="folder for decode.json")
    options = parser.parse_args(argv)
    if options.child is not None:
        print(json.dumps(_child(DecodeCase(**json.loads(options.child)))))
        return 0
    head, rows = about(), []
    with tempfile.TemporaryDirectory() as name:
        for size in options.size or [2048]:
            latents = _latents(options, size // 8, Path(name))
            base = DecodeCase(
                "", str(latents), options.threads, options.checkpoint, options.bundle, options.memory
            )  # fmt: skip
            untiled = size <= options.untiled_up_to
            whose = [who for who in options.who or PEERS + OURS if untiled or who != "untiled"]
            found = side_by_side(base, whose, rounds=options.rounds, check_against_untiled=untiled)
            rows += [{"size_px": size, "threads": options.threads, **row} for row in found]
            if options.output is not None:
                write_rows(options.output / "decode.json", rows, head)
    print(table(rows, COLUMNS))
    return 0


def _latents(options: argparse.Namespace, cells: int, folder: Path) -> Path:
    if options.latents is None:
        return photographs(cells, folder, options.bundle)
    given = np.load(options.latents)
    times = -(-cells // min(given.shape[1:]))
    path = folder / f"given{cells}.npy"
    np.save(path, np.tile(given, (1, times, times))[:, :cells, :cells])
    return path


if __name__ == "__main__":
    sys.exit(main())
