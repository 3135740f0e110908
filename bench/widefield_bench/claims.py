"""What is claimed of a decode on a CPU, beside what was measured; where it does not hold, why, in numbers.

from 2048 x 2048 on     >= 3 times diffusers' tiled, >= 4 times its untiled, by wall time, where nobody
                            disturbed either run
at 4096 x 4096          <= 1/8 of untiled's memory
everywhere              >= 45 dB from untiled; a size that was not fitted is predicted within 15 %
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from widefield_bench.decode import LEAST_DB, OURS
from widefield_bench.results import LABELS, Row, one, quiet, section

FROM_PX, OVER_TILED, OVER_UNTILED = 2048, 3.0, 4.0
MEMORY_PX, MEMORY_SHARE = 4096, 1 / 8


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of the table."""

    who: str
    wanted: str
    found: str
    holds: bool
    why: str = ""


def claims(rows: Sequence[Row]) -> list[Claim]:
    """Every claim that the rows can speak to."""
    decodes = section(rows, "decode")
    return [*_speed(decodes), *_memory(decodes), *_quality(section(rows, "quality")), *_scaling(rows)]


def _speed(decodes: Sequence[Row]) -> Iterator[Claim]:
    for mine in decodes:
        if mine["who"] not in OURS or mine["size_px"] < FROM_PX or not quiet(mine):
            continue
        for peer, least in (("tiled", OVER_TILED), ("untiled", OVER_UNTILED)):
            theirs = one(decodes, who=peer, size_px=mine["size_px"])
            if theirs is None or not quiet(theirs):
                continue
            times = theirs["seconds"] / mine["seconds"]
            wanted = f"{least:g} times {LABELS[peer]}, {mine['size_px']} px"
            why = "" if times >= least else _why_slow(mine, theirs)
            yield Claim(LABELS[mine["who"]], wanted, f"{times:.2f} times", times >= least, why)


def _why_slow(mine: Row, theirs: Row) -> str:
    """Where the time went: what does not grow with the picture, or the engine itself."""
    measure, stream = mine["measure_seconds"], mine["stream_seconds"]
    rate = mine["flops"] / stream / 1e9
    return (
        f"the summary is {measure:.1f} of {mine['seconds']:.1f} s, without it {theirs['seconds'] / stream:.2f} times; "
        f"engines compute {rate:.0f} GFLOP/s and {mine['flops_over_untiled'] - 1:.0%} more than untiled, in margins"
    )


def _memory(decodes: Sequence[Row]) -> Iterator[Claim]:
    theirs = one(decodes, who="untiled", size_px=MEMORY_PX)
    for who in OURS:
        mine = one(decodes, who=who, size_px=MEMORY_PX)
        if mine is not None and theirs is not None:
            share = mine["peak_mib"] / theirs["peak_mib"]
            found = f"1/{1 / share:.1f}: {mine['peak_mib']:,.0f} of {theirs['peak_mib']:,.0f} MiB"
            why = "" if share <= MEMORY_SHARE else "two workers' tiles of the size that is quickest; --memory bounds it"
            wanted = f"at most 1/{1 / MEMORY_SHARE:.0f} of untiled's memory, {MEMORY_PX} px"
            yield Claim(LABELS[who], wanted, found, share <= MEMORY_SHARE, why)


def _quality(checked: Sequence[Row]) -> Iterator[Claim]:
    for who in OURS:
        found = [row for row in checked if row["who"] == who]
        if found:
            least = min(row["psnr_db"] for row in found)
            wanted = f"{LEAST_DB:g} dB from untiled, all sizes"
            yield Claim(LABELS[who], wanted, f"{least:.1f} dB at least", least >= LEAST_DB)


def _scaling(rows: Sequence[Row]) -> Iterator[Claim]:
    for row in section(rows, "scaling"):
        wanted = f"{row['size_px']} px, not fitted, predicted within 15 %"
        found = f"{row['predicted_cpu_seconds']:.1f} CPU s, took {row['measured_cpu_seconds']:.1f}: {row['off']:+.1%}"
        yield Claim(LABELS[row["by"]], wanted, found, row["within"])
