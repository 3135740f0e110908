"""What drawing costs and what it gives: a cold viewport of the largest picture, whole pictures, and how they look.

    python -m widefield_bench.drawing --size 2048x2048 --size 8192x8192 -o bench/results

cold    1024 x 1024 px in the middle of 524,288 x 524,288, in a fresh process: seconds from opening the bundle to the
        pixels, and the windows and tiles that were computed, which are checked against what the plan counts.
views   512 x 512 px here and there in the same, one after the other, with the least memory that may be planned: the
        peak above the idle process, and what was computed over what was counted.
whole   a picture written as .tif in a fresh process: seconds, Mpx/s, and the peak of the resident set above the idle
        process against the budget and what was planned.
looks   of every level against the one below: `correlation` of its box mean with it; `detail`, the energy above that
        one's Nyquist frequency over its cubic enlargement's. And of the last level `seams`, down and across: the mean
        absolute gradient across cells' borders where the last phase's windows fade into each other, over that at the
        same borders of the same picture where its windows lie elsewhere and do not, and its standard error. `crossings`
        is the same where four windows do.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield_bench.common import Watched, about, child_environment, forget_peak, resident_nbytes, table, write_rows
from widefield_bench.looks import correlation, crossings, detail, fading, seams

MIB = 1 << 20
LARGEST, VIEWPORT = 524_288, 1024
PROMPTS = "a volcanic archipelago at dawn", "clouds over the open sea"


@dataclass(frozen=True, slots=True)
class DrawingCase:
    """One child's work. `options` are Model.generate's; `bundle` None is the embedded one."""

    what: str
    size: tuple[int, int] = (2048, 2048)
    bundle: str | None = None
    prompt: str = PROMPTS[0]
    seed: int = 0
    memory: str = "1GiB"
    engine: str = "ort"
    options: dict[str, Any] = field(default_factory=dict)


def measure(case: DrawingCase, *, timeout_s: float = 3600) -> dict[str, Any]:
    """Run a case in a fresh process. CalledProcessError where it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "widefield_bench.drawing", "--child", json.dumps(asdict(case))],
        env=child_environment(), stdout=subprocess.PIPE, text=True, check=True, timeout=timeout_s,
    )  # fmt: skip
    return {**asdict(case), **json.loads(done.stdout.splitlines()[-1])}


def _opened(case: DrawingCase) -> Any:
    import widefield

    options = {name: tuple(v) if isinstance(v, list) else v for name, v in case.options.items()}
    return widefield.open(case.bundle).generate(
        case.prompt, size=case.size, seed=case.seed, memory=case.memory, engine=case.engine, **options
    )


def _cold(case: DrawingCase) -> dict[str, Any]:
    started = time.perf_counter()
    from widefield.cone import cone
    from widefield.geometry import Region

    with _opened(case) as picture:
        width, height = case.size
        y, x = (max(0, side - VIEWPORT) // 2 for side in (height, width))
        region = Region(y, x, y + VIEWPORT, x + VIEWPORT).pushed(Region(0, 0, height, width))
        units = [0]
        pixels = picture.read(region, progress=lambda done: units.__setitem__(0, done))
        seconds = time.perf_counter() - started
        counted = cone(picture.cascade(), region)
    assert pixels.shape == (region.height, region.width, 3) and pixels.std() > 1
    assert units[0] <= counted.units, (units[0], counted.units)
    return {"seconds": round(seconds, 2), "units": units[0], "counted_units": counted.units, **counted.as_dict()}


def _import_all(engine: str) -> None:
    """What an idle process has loaded."""
    for library in ("onnxruntime", "tokenizers", "zarr", "imagecodecs"):
        importlib.import_module(library)
    if engine == "openvino":
        importlib.import_module("widefield.engine.openvino_engine")


def _views(case: DrawingCase) -> dict[str, Any]:
    from widefield.cone import cone
    from widefield.draw_plan import VIEWPORT_PX
    from widefield.geometry import Region

    _import_all(case.engine)
    with _opened(replace(case, memory=str(_least_nbytes(case)))) as picture, Watched() as memory:
        plan = picture.draw_plan()
        width, height = case.size
        units, counted, started = 0, 0, time.perf_counter()
        for down, across in ((2, 2), (3, 5), (7, 3), (2, 5)):  # parts of the sides, where the view begins
            y, x = height // down, width // across
            region = Region(y, x, y + VIEWPORT_PX, x + VIEWPORT_PX).pushed(Region(0, 0, height, width))
            told = [0]
            picture.read(region, progress=lambda done, told=told: told.__setitem__(0, done))
            units, counted = units + told[0], counted + cone(picture.cascade(), region).units
        seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 2),
        "units": units,
        "counted_units": counted,
        "actual_mib": -(-memory.grown_nbytes // MIB),
        "planned_mib": -(-plan.peak_nbytes // MIB),
        "within": memory.grown_nbytes <= plan.peak_nbytes <= plan.memory_nbytes,
    }


def _least_nbytes(case: DrawingCase) -> int:
    from widefield.errors import OverBudget

    with _opened(replace(case, memory="1MiB")) as picture:
        try:
            picture.draw_plan()
        except OverBudget as fault:
            return fault.smallest_nbytes
    raise AssertionError("a plan for a mebibyte")


def _whole(case: DrawingCase) -> dict[str, Any]:
    _import_all(case.engine)
    with _opened(case) as picture, tempfile.TemporaryDirectory() as folder:
        baseline = resident_nbytes()
        forget_peak()
        peaks: dict[str, int] = {}

        def note(what: str) -> None:
            peaks[what] = max(peaks.get(what, 0), resident_nbytes("VmHWM") - baseline)
            forget_peak()

        started = time.perf_counter()
        saved = picture.save(
            Path(folder) / "drawn.tif", talk=lambda *_: note("drawing"),
            progress=lambda state: note("drawing" if state.done == 1 else "decoding"),
        )  # fmt: skip
        seconds = time.perf_counter() - started
        note("decoding")
        plan = picture.draw_plan(lazily=False)
        assert saved.size_px == tuple(case.size)
    actual, planned = max(peaks.values()), max(plan.peak_nbytes, saved.plan.peak_nbytes())
    return {
        "seconds": round(seconds, 2),
        "mpx_s": round(case.size[0] * case.size[1] / 1e6 / seconds, 3),
        "actual_mib": -(-actual // MIB),
        "planned_mib": -(-planned // MIB),
        "budget_mib": plan.memory_nbytes // MIB,
        "within": actual <= planned <= plan.memory_nbytes,
        "peaks_mib": {what: -(-nbytes // MIB) for what, nbytes in peaks.items()},
    }


def _drawn_with(picture: Any, shift: int) -> tuple[NDArray[Any], Any]:
    """The last level's pixels with its windows moved, and where these are in its last phase."""
    from widefield.geometry import Region
    from widefield.memo import Memo
    from widefield_kernels.epilogue import to_pixels_reference

    generation = picture.generation
    engine = picture.options.engine_options(workers=picture.options.side_by_side)
    plan = picture.draw_plan()
    options = generation.cascade_options(engine, held_nbytes=plan.held_nbytes, shift=(shift, shift))
    with closing(generation.cascade(Memo(plan.memo_nbytes), options)) as cascade:
        height, width = generation.size_px
        values = cascade.pixels[-1].read(Region(0, 0, height, width))
        level = generation.levels[-1]
        return to_pixels_reference(values)[0], cascade.grid(level).phase(level.phases - 1)


def _seams(picture: Any) -> dict[str, Any]:
    """Four times the picture, its windows moved by a quarter of their stride each time."""
    stride = picture.cascade().grid(picture.generation.levels[-1]).stride
    drawn = [_drawn_with(picture, stride[0] * quarter // 4) for quarter in range(4)]
    pictures, cell = [pixels for pixels, _ in drawn], picture.generation.bundle.scale
    told: dict[str, Any] = {}
    for name in ("seams", "crossings"):
        found = []
        for axis in (0, 1):
            where = [
                fading((grid.rows, grid.columns)[axis]) if name == "seams"
                else crossings(grid, cell, axis, pixels.shape[1 - axis])
                for pixels, grid in drawn
            ]  # fmt: skip
            found.append(seams(pictures, where, cell, axis))
        told |= {name: [round(r, 4) for r, _ in found], f"{name}_error": [round(e, 4) for _, e in found]}
    return told


def _looks(case: DrawingCase) -> dict[str, Any]:
    from widefield.geometry import Region
    from widefield_kernels.epilogue import to_pixels_reference

    with _opened(case) as picture:
        cascade = picture.cascade()
        levels = [np.asarray(picture.level(k)) for k in range(picture.levels)]
        rows = []
        for index, level in enumerate(picture.generation.levels[1:], 1):
            times = round(level.size.ratio)
            cubic = cascade.enlarged(level)
            height, width = levels[index].shape[:2]
            parent, _ = to_pixels_reference(cubic.read(Region(0, 0, height, width)))
            rows.append(
                {
                    "level": index,
                    "size_px": [width, height],
                    "correlation": round(correlation(levels[index], levels[index - 1]), 4),
                    "detail": round(detail(levels[index], parent, times), 3),
                }
            )
        rows[-1] |= _seams(picture)
    return {"levels": rows}


CHILDREN = {"cold": _cold, "views": _views, "whole": _whole, "looks": _looks}


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for; a table, and a JSON file in the folder `-o`."""
    parser = argparse.ArgumentParser(prog="python -m widefield_bench.drawing", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--what", action="append", choices=tuple(CHILDREN), help="repeat; default: all")
    parser.add_argument(
        "--size", action="append", help="WIDTHxHEIGHT of `whole`, and up to 2048 of `looks`; repeat (2048x2048)"
    )
    parser.add_argument("--bundle", help="default: the embedded one")
    parser.add_argument(
        "--prompt", action="append", help="more than one is for `looks`; repeat (an archipelago, clouds)"
    )
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--engine", action="append", help="the first one is for `looks`; repeat (ort)")
    parser.add_argument("--options", type=json.loads, default={}, help="of Model.generate, as JSON")
    parser.add_argument("-o", "--out", type=Path, help="folder for drawing.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.child is not None:
        case = DrawingCase(**json.loads(asked.child))
        print(json.dumps(CHILDREN[case.what](case)))
        return 0
    from widefield.options import parse_size

    sizes = [parse_size(size) for size in asked.size or ["2048x2048"]]
    largest = [(LARGEST, LARGEST)]
    of = {"cold": largest, "views": largest, "whole": sizes, "looks": [s for s in sizes if max(s) <= 2048]}
    engines, prompts = asked.engine or ["ort"], asked.prompt or list(PROMPTS)
    rows = []
    for what in asked.what or CHILDREN:
        turns = [(engines[0], prompt) for prompt in prompts] if what == "looks" else [(e, prompts[0]) for e in engines]
        for size, (engine, prompt) in itertools.product(of[what], turns):
            case = DrawingCase(what, size, asked.bundle, prompt, 0, asked.memory, engine, asked.options)
            rows.append(measure(case))
            print(json.dumps(rows[-1]), flush=True)
    if asked.out is not None:
        write_rows(asked.out / "drawing.json", rows, about())
    print(table(rows, ("what", "size", "engine", "seconds", "mpx_s", "units", "actual_mib", "planned_mib", "within")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
