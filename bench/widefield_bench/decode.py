"""Our decode beside its peers': the same weights, latents and threads, in turns, each run in a fresh process.

    python -m widefield_bench.decode --size 2048 --size 4096 -o bench/results/

Who       the peers of widefield_bench.peers; widefield on ONNX Runtime and on OpenVINO, float32 and bfloat16, each a
          whole `Picture.save` to a .tif: summary measured, encoded, pyramid written.
Counted   Mpx over wall time and over CPU time, of decode or save alone: imports, loading, exporting, torch.compile are
          left out. CPU time is the number to compare on a machine that is shared. Of several rounds, the median.
Checked   ours, lossless, against untiled, before it is timed (>= 45 dB, or the run ends); peers against it too.
Memory    the peak of the resident set over what the process held before, weights loaded. Past `limit` above that the
          system refuses memory. A run that fails, or is not done in time, is a row that says so.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield_bench.common import about, machine, table, write_rows
from widefield_bench.decode_run import TIMEOUT_S, DecodeCase, run_case
from widefield_bench.latents import photographs, repeated
from widefield_bench.peers import PEERS

LEAST_DB, MOST_DB = 45.0, 99.0  # wanted of ours; written where two pictures are equal
OURS = ("ort f32", "openvino f32", "openvino bf16")
USUAL = ("untiled", "tiled", *OURS)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> tuple[float, int]:
    """(decibels, largest difference) of two pictures, row by row in bounded memory."""
    total, largest = 0, 0
    for one, other in zip(a, b, strict=True):
        difference = np.abs(one.astype(np.int32) - other)
        total += int((difference.astype(np.int64) ** 2).sum())
        largest = max(largest, int(difference.max(initial=0)))
    return (math.inf if total == 0 else 10 * math.log10(255**2 * a.size / total)), largest


def side_by_side(
    base: DecodeCase, whose: Sequence[str], *, rounds: int, check_against_untiled: bool, timeout_s: float = TIMEOUT_S
) -> list[dict[str, Any]]:
    """Check and time every way in turns; a row each, of medians. ValueError where ours is another picture.

    Who fails once is not asked again, and its row is {"who", "failed"}.
    """
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in whose}
    failed: dict[str, str] = {}
    loads: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        checks = _Checks(base, Path(folder), timeout_s) if check_against_untiled else None
        for number in range(rounds):
            for who in _turns(whose, number):
                if who in failed:
                    continue
                loads.append(machine()["load_average"][0])
                case = replace(base, who=who)
                if number == 0 and checks is not None:
                    case = checks.before(case)
                run = run_case(case, timeout_s=timeout_s)
                if "failed" in run:
                    failed[who] = run["failed"]
                    print(f"{who}: {failed[who]}", file=sys.stderr)
                    continue
                found[who].append(run)
                print(f"{who}: {run['seconds']:.1f} s, {run['cpu_seconds']:.1f} CPU s", file=sys.stderr)
                if case.keep is not None and checks is not None:
                    checks.compare(case)
    rows = []
    for who in whose:
        if who in failed:
            rows.append({"who": who, "failed": failed[who]})
            continue
        row = {"who": who, "rounds": rounds, "load_average": [min(loads), max(loads)], **_medians(found, who)}
        rows.append({**row, **(checks.found.get(who, {}) if checks else {})})
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def _medians(found: Mapping[str, Sequence[Mapping[str, Any]]], who: str) -> dict[str, Any]:
    """A row of one way's runs, and how many times as quick it is as each peer, by pairs of the same round."""
    runs = found[who]
    row = {k: statistics.median(run[k] for run in runs) if isinstance(v, float) else v for k, v in runs[0].items()}
    row["mpx_per_s"] = row["mpx"] / row["seconds"]
    row["mpx_per_cpu_s"] = row["mpx"] / row["cpu_seconds"]
    if "stream_seconds" in row:
        row["stream_mpx_per_s"] = row["mpx"] / row["stream_seconds"]
        row["stream_mpx_per_cpu_s"] = row["mpx"] / row["stream_cpu_seconds"]
    for peer in PEERS:
        if len(found.get(peer, ())) == len(runs) and peer != who:
            for unit, name in (("cpu_seconds", "cpu"), ("seconds", "wall")):
                pairs = zip(found[peer], runs, strict=True)
                row[f"over_{peer.replace(' ', '_')}_{name}"] = statistics.median(p[unit] / r[unit] for p, r in pairs)
    return row


def _turns(whose: Sequence[str], number: int) -> Sequence[str]:
    """The order of a round: untiled first where there is something to check, then there and back again."""
    if number == 0:
        return sorted(whose, key=lambda who: who != "untiled")
    return list(whose) if number % 2 == 0 else list(reversed(whose))


class _Checks:
    """PSNR and largest difference against untiled, as the first round goes. `found` has them by who."""

    def __init__(self, base: DecodeCase, folder: Path, timeout_s: float) -> None:
        self.base, self.timeout_s = base, timeout_s
        self.truth, self.mine = folder / "untiled.npy", folder / "mine.npy"
        self.found: dict[str, dict[str, Any]] = {}

    def before(self, case: DecodeCase) -> DecodeCase:
        """The case to time. Ours is checked first, lossless; a peer's pixels are kept, to be compared after."""
        if case.who in OURS:
            checked = replace(case, keep=str(self.mine))
            if self.truth.exists() and "failed" not in run_case(checked, timeout_s=self.timeout_s):
                self.compare(checked)
            return case
        return replace(case, keep=str(self.truth if case.who == "untiled" else self.mine))

    def compare(self, case: DecodeCase) -> None:
        """Note how far what was kept is from untiled; ValueError where that is too far for ours."""
        if case.who == "untiled" or not self.truth.exists():
            return
        decibels, largest = psnr(np.load(self.mine, mmap_mode="r"), np.load(self.truth, mmap_mode="r"))
        self.found[case.who] = {"psnr_db": min(round(decibels, 2), MOST_DB), "largest_difference": largest}
        print(f"{case.who}: {decibels:.1f} dB, at most {largest} from untiled", file=sys.stderr)
        if case.who in OURS and decibels < LEAST_DB:
            raise ValueError(f"{case.who} is {decibels:.1f} dB from untiled; wanted {LEAST_DB}; it was not timed")


COLUMNS = (
    "size_px", "who", "failed", "mpx_per_s", "mpx_per_cpu_s", "over_tiled_cpu", "over_tiled_wall", "over_untiled_cpu",
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
    parser.add_argument("--limit", help="what any run may take in memory, as 8GiB (none)")
    parser.add_argument("--rounds", type=int, default=3, help="%(default)s")
    parser.add_argument("--untiled-up-to", type=int, default=2048, help="pixels; past it untiled is left out")
    parser.add_argument("--who", action="append", help=f"{', '.join(PEERS + OURS)}; may be repeated (the usual)")
    parser.add_argument("-o", "--output", type=Path, help="folder for decode.json")
    options = parser.parse_args(argv)
    head, rows = about(), []
    with tempfile.TemporaryDirectory() as name:
        for size in options.size or [2048]:
            latents = _latents(options, size // 8, Path(name))
            base = DecodeCase(
                "", str(latents), options.threads, options.checkpoint, options.bundle, options.memory,
                limit=options.limit,
            )  # fmt: skip
            untiled = size <= options.untiled_up_to
            whose = [who for who in options.who or USUAL if untiled or who != "untiled"]
            found = side_by_side(base, whose, rounds=options.rounds, check_against_untiled=untiled)
            rows += [{"size_px": size, "threads": options.threads, **row} for row in found]
            if options.output is not None:
                write_rows(options.output / "decode.json", rows, head)
    print(table(rows, COLUMNS))
    return 0


def _latents(options: argparse.Namespace, cells: int, folder: Path) -> Path:
    if options.latents is None:
        return photographs(cells, folder, options.bundle)
    return repeated(np.load(options.latents), cells, folder / f"given{cells}.npy")


if __name__ == "__main__":
    sys.exit(main())
