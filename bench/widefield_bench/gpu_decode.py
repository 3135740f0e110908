"""Decoding on a GPU with a decoder of SDXL's configuration: checked against the CPU, then timed beside diffusers.

    bench/device.sh --decode                                      after the kernels, where there is time
    python -m widefield_bench.gpu_decode [--out FOLDER] [--minutes 8]
    python -m widefield_bench.gpu_decode --device cpu --quick     a small decoder, once: to see that it runs

Weights and latents are random: times do not depend on them. Checked: float32 to 1e-3 of ONNX Runtime on the CPU, on
tiles with and without masks; bf16 to 40 dB. Timed: Mpx/s of the tiles of a picture of each size, for as long as
CASE_SECONDS; where that was not all of them the row says how many. The ceilings and what the GPU has free stand on top.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from widefield.bundle import Bundle, open_bundle
from widefield.coder import TileCoder
from widefield.device import takes_tiles
from widefield.engine import EngineOptions
from widefield.errors import WidefieldError
from widefield.geometry import Region
from widefield.summary import Summary
from widefield.sweep import SweepOptions, measure
from widefield_bench.common import about as about_machine
from widefield_bench.common import table, write_rows
from widefield_bench.gpu import Clock, ceilings, describe

SDXL = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SMALL = SDXL | {"block_out_channels": (16, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8}
SIDES_PX = (1024, 2048, 8192, 32768)
CASE_SECONDS = 25.0
OPEN_SECONDS = {"torch": 60.0, "trt": 90.0, "ort": 20.0, "diffusers": 10.0, "compiled": 90.0}  # what opening may take
COLUMNS = ("what", "by", "size_px", "mpx_per_s", "ms", "error", "note")
TILE = 128


class Noise:
    """Latents of any size: every read is seeded by its place, so nothing is held."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.channels, self.height, self.width = channels, height, width

    def read(self, region: Region) -> NDArray[np.float32]:
        """(channels, rows, columns), zeros outside of the picture."""
        seed = (region.y0 + (1 << 20), region.x0 + (1 << 20), region.height, region.width)
        return np.random.default_rng(seed).standard_normal((self.channels, region.height, region.width), np.float32)


@dataclass(slots=True)
class Run:
    """A run: where, until when, and its rows so far, each said on stderr as it is found."""

    device: str
    ends: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, what: str, by: str, **found: Any) -> None:
        """A row."""
        self.rows.append({"what": what, "by": by, **found})
        print(what, by, found, file=sys.stderr, flush=True)

    def has(self, seconds: float) -> bool:
        """Whether so much time is left, for what is begun now."""
        return time.monotonic() + seconds <= self.ends


@dataclass(frozen=True, slots=True)
class Subject:
    """The decoder as diffusers has it and as a bundle, with a frozen summary."""

    vae: Any
    bundle: Bundle
    summary: Summary
    tile: int

    def coder(self, side: int, engine: EngineOptions, *, values: bool = False) -> TileCoder:
        """For a picture of `side` latents a side, as `widefield decode` would open it; `values` in the place of pixels
        where it has the choice."""
        component = self.bundle.decoder
        tile = min(self.tile, side)
        source = Noise(component.input_channels, side, side)
        given = self.bundle, component, source, self.summary, (tile, tile), 1, engine
        if not takes_tiles(engine):
            return TileCoder(*given, interior_from=1, certify=False)
        from widefield.device.coder import DeviceCoder
        from widefield.device.gpu import CupyGpu
        from widefield.device.ops import CupyOps

        gpu = CupyGpu(engine.gpu)
        coder = DeviceCoder(*given, interior_from=1, certify=False)
        return coder.on(gpu, CupyOps(gpu, engine.precision), values=values)


def prepare(config: dict[str, Any], folder: Path, tile: int) -> Subject:
    """Export a random decoder and freeze a summary on a few squares, on the CPU."""
    from diffusers import AutoencoderKL

    from widefield_export.commands import build_bundle

    torch.manual_seed(0)
    vae = AutoencoderKL(**config).eval()
    build_bundle(vae, folder, name="random", source={})
    bundle = open_bundle(folder)
    options = SweepOptions(4, 1 << 30, folder, EngineOptions("ort", workers=torch.get_num_threads()))
    source = Noise(bundle.decoder.input_channels, 256, 256)
    summary = measure(bundle, bundle.decoder, source, "sampled", options, cells=16, keys=4096)
    return Subject(vae, bundle, summary, tile)


def engines(device: str) -> Iterator[tuple[str, EngineOptions]]:
    """What is timed, by name."""
    yield "torch bf16", EngineOptions("torch", "bf16", device=device)
    yield "torch f32", EngineOptions("torch", "f32", device=device)
    if device != "cpu":
        yield "trt bf16", EngineOptions("trt", "bf16", device=device)
        yield "ort f32", EngineOptions("ort", "f32", device=device)


def check(run: Run, subject: Subject) -> list[tuple[str, EngineOptions]]:
    """The engines that are there and right, rows of the errors of all."""
    side = 3 * subject.tile
    at = subject.tile
    tiles = [Region(0, 0, at, at), Region(at, at, 2 * at, 2 * at)]
    reference = subject.coder(side, EngineOptions("ort", threads=torch.get_num_threads()))
    truth = [reference([tile])[0] for tile in tiles]
    reference.close()
    right = []
    for name, options in engines(run.device):
        if not run.has(OPEN_SECONDS[options.backend]):
            run.add("check", name, note="not run: out of time")
            continue
        try:
            coder = subject.coder(side, options, values=True)
            found = [coder([tile])[0] for tile in tiles]
            coder.close()
        except (WidefieldError, RuntimeError) as cause:
            run.add("check", name, note=str(cause).splitlines()[0][:100])
            continue
        error = max(float(np.abs(a - b).max()) for a, b in zip(found, truth, strict=True))
        noise = float(np.mean([np.mean((a - b) ** 2) for a, b in zip(found, truth, strict=True)]))
        decibels = float(10 * np.log10(np.ptp(truth[0]) ** 2 / max(noise, 1e-20)))
        good = error <= 1e-3 if options.precision == "f32" else decibels >= 40
        run.add("check", name, error=error, note=f"{decibels:.1f} dB, {'right' if good else 'WRONG: not timed'}")
        right += [(name, options)] if good else []
    return right


def time_ours(run: Run, subject: Subject, name: str, options: EngineOptions, side_px: int) -> None:
    """Tiles of a picture, in order, until all are made or CASE_SECONDS are over."""
    side = side_px // 8
    coder = subject.coder(side, options)
    step = coder.tile[0]
    places = [Region(y, x, y + step, x + step) for y in range(0, side, step) for x in range(0, side, step)]
    kinds = {coder.kind(tile): tile for tile in places}
    for _ in coder.stream([[tile] for tile in [*kinds.values()] * 4], _whole):  # compiled, captured
        pass
    began, made = time.perf_counter(), 0
    for _ in coder.stream(([tile] for tile in places), _whole):
        made += 1
        if time.perf_counter() - began > CASE_SECONDS:
            break
    seconds = time.perf_counter() - began
    coder.close()
    note = "" if made == len(places) else f"{made} of {len(places)} tiles"
    mpx = made * (step * 8) ** 2 / 1e6
    run.add("decode", name, size_px=side_px, mpx_per_s=mpx / seconds, ms=1e3 * seconds, note=note)


def _whole(tile: Region) -> Region:
    return tile


def time_theirs(run: Run, subject: Subject, sides_px: Sequence[int]) -> None:
    """diffusers, bf16: untiled, tiled, compiled; what does not fit says so, larger sizes are then left out."""
    vae = subject.vae.to(run.device, torch.bfloat16)
    compiled = torch.compile(vae.decoder)
    plain = vae.decoder
    for who in ("untiled", "tiled") if run.device == "cpu" else ("untiled", "tiled", "compiled"):
        vae.decoder = compiled if who == "compiled" else plain
        vae.enable_tiling() if who == "tiled" else vae.disable_tiling()
        for side_px in sides_px:
            opening = OPEN_SECONDS["compiled" if who == "compiled" else "diffusers"]
            late = not run.has(opening + CASE_SECONDS)
            if late or (side_px > 8192) or (who == "compiled" and side_px > 2048):
                break
            z = torch.randn(1, 4, side_px // 8, side_px // 8, device=run.device, dtype=torch.bfloat16)
            try:
                seconds = _seconds(partial(vae.decode, z), run.device)
            except torch.OutOfMemoryError:
                run.add("decode", f"diffusers {who}", size_px=side_px, note="does not fit")
                torch.cuda.empty_cache()
                break
            run.add(
                "decode", f"diffusers {who}", size_px=side_px, mpx_per_s=side_px**2 / 1e6 / seconds, ms=1e3 * seconds
            )


def _seconds(decode: Callable[[], Any], device: str) -> float:
    """Of the second run, which is the first that has nothing to set up."""
    seconds = 0.0
    with torch.inference_mode():
        for _ in range(2):
            began = time.perf_counter()
            decode()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
            if seconds > CASE_SECONDS:
                break
    return seconds


def main(argv: list[str] | None = None) -> int:
    """Check, time, print the table last; `decode.json` in the folder has every row."""
    parser = argparse.ArgumentParser(prog="widefield_bench.gpu_decode", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("build/device"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args(argv)
    run = Run(asked.device, time.monotonic() + 60 * asked.minutes)
    on_gpu = asked.device != "cpu"
    clock = Clock("cuda" if on_gpu else "cpu", repeats=3 if asked.quick else 30, warm_up=1)
    about: dict[str, Any] = {"device": describe("cuda" if on_gpu else "cpu"), "torch": torch.__version__}
    side, nbytes = (128, 1 << 20) if asked.quick else (8192, 1 << 30)
    about["ceilings"] = ceilings(clock, side=side, nbytes=nbytes)
    if on_gpu:
        from widefield.device.budget import free_nbytes

        about["budget_nbytes"] = free_nbytes(EngineOptions(device=asked.device).gpu)
    sides = (512,) if asked.quick else SIDES_PX
    with tempfile.TemporaryDirectory() as folder:
        subject = prepare(SMALL if asked.quick else SDXL, Path(folder), 16 if asked.quick else TILE)
        right = check(run, subject)
        for side_px in sides:
            for name, options in right:
                if run.has(CASE_SECONDS):
                    time_ours(run, subject, name, options, side_px)
        time_theirs(run, subject, sides)
    write_rows(asked.out / "decode.json", run.rows, about_machine() | about)
    print({name: value for name, value in about.items() if name != "torch"})
    print(table(run.rows, COLUMNS))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
