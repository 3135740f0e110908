"""`widefield bench`: ours beside its peers on this machine; a table, a JSON file and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from widefield.commands import arguments
from widefield.commands.output import print_json
from widefield.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from widefield_bench.results import Row

SECTIONS = ("decode", "split", "roofline", "scaling")


@click.command("bench", cls=arguments.Command, short_help="Ours beside its peers on this machine; a report.")
@arguments.bundle
@arguments.option(
    "--checkpoint", type=arguments.PATH, section="Files", metavar="FOLDER",
    help="The diffusers autoencoder that the bundle was exported from (the one of the bundle that came along).",
)  # fmt: skip
@arguments.option(
    "--latents", type=arguments.PATH, section="Files", metavar="FILE",
    help="A .npy file of what is decoded, repeated to each size (photographs, encoded).",
)  # fmt: skip
@arguments.option(
    "-o", "--out", type=arguments.PATH, default=Path("bench"), section="Files", metavar="FOLDER",
    help="For bench.json and report.html; what is in it of earlier runs stays until it is measured again (bench).",
)  # fmt: skip
@arguments.option(
    "--against", type=click.Choice(["diffusers", "nobody"]), default="diffusers", section="What",
    help="The peers: diffusers untiled, sliced, tiled and compiled, and exported in one piece (diffusers).",
)  # fmt: skip
@arguments.option("--who", multiple=True, section="What", metavar="NAME", help="One of them; again for more.")
@arguments.option(
    "--size", "sizes", multiple=True, type=click.IntRange(64), section="What", metavar="PIXELS",
    help="The side of a square picture; again for more (1024 to 4096).",
)  # fmt: skip
@arguments.option(
    "--only", "sections", multiple=True, type=click.Choice(SECTIONS), section="What", help="A part; again for more."
)
@arguments.option("--quick", is_flag=True, section="What", help="Small pictures: minutes, and less to learn.")
@arguments.option("--rounds", type=click.IntRange(1), default=1, section="What", help="Of each decode, in turns (1).")
@arguments.option(
    "--untiled-up-to", type=click.IntRange(64), section="What", metavar="PIXELS",
    help="Past it, what decodes in one piece is left out: its attention takes minutes (2048).",
)  # fmt: skip
@arguments.option(
    "--limit", default="8GiB", section="Resources", metavar="AMOUNT", help="The memory that any run may take (8GiB)."
)
@arguments.option(
    "--timeout", type=click.IntRange(1), default=900, section="Resources", metavar="SECONDS",
    help="Of one run; who takes longer has failed (900).",
)  # fmt: skip
@arguments.option(
    "--threads", type=click.IntRange(1), section="Resources", help="Of each run (all cores that there are)."
)
@arguments.as_json
@arguments.quiet
def bench(
    bundle: Path | None,
    checkpoint: Path | None,
    out: Path,
    against: str,
    sections: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    **asked: Any,
) -> None:
    """Measure decodes of this machine, ours and its peers', and draw what was found.

    Every run has a process of its own, and the ways take turns; what is not the same picture is not timed. A peer that
    runs out of memory or time is a line of the table.

    \b
    widefield bench --quick -o report
    widefield bench --size 2048 --size 4096 --rounds 3 -o report
    """
    from widefield_bench.decode import OURS
    from widefield_bench.report import write_report
    from widefield_bench.suite import run

    suite = _suite(bundle, checkpoint, against, sections or SECTIONS, asked)
    if set(suite.ways()) - set(OURS) and not Path(suite.checkpoint).is_dir():
        raise BadRequest(
            f"{suite.checkpoint} is no folder; wanted the diffusers autoencoder of the bundle; name it with "
            "--checkpoint, or pass --against nobody"
        )
    rows = run(suite, out / "bench.json")
    write_report(rows, out / "report.html")
    if as_json:
        print_json({"rows": rows})
    elif not quiet:
        _tell(rows)
        click.echo(f"{out / 'bench.json'}, {out / 'report.html'}")


def _suite(
    bundle: Path | None, checkpoint: Path | None, against: str, sections: tuple[str, ...], asked: dict[str, Any]
) -> Any:
    import os
    from dataclasses import replace

    from widefield_bench.decode import OURS
    from widefield_bench.peers import PEERS
    from widefield_bench.suite import QUICK_PX, SIZES_PX, Suite

    unknown = set(asked["who"]) - {*PEERS, *OURS}
    if unknown:
        raise BadRequest(f"nobody is called {', '.join(sorted(unknown))}; there are {', '.join((*PEERS, *OURS))}")
    if bundle is not None and checkpoint is None and against != "nobody":
        raise BadRequest(
            "--bundle has no weights that diffusers reads; wanted --checkpoint FOLDER, or --against nobody"
        )
    defaults = Suite()
    plain = Suite(
        None if bundle is None else str(bundle),
        None if asked["latents"] is None else str(asked["latents"]),
        defaults.checkpoint if checkpoint is None else str(checkpoint),
        tuple(sorted(asked["sizes"])) or (QUICK_PX if asked["quick"] else SIZES_PX),
        rounds=asked["rounds"],
        threads=asked["threads"] or len(os.sched_getaffinity(0)),
        limit=asked["limit"],
        timeout_s=asked["timeout"],
        untiled_up_to_px=asked["untiled_up_to"] or defaults.untiled_up_to_px,
        sections=sections,
        quick=asked["quick"],
    )
    whose = asked["who"] or tuple(who for who in plain.ways() if against != "nobody" or who in OURS)
    return replace(plain, whose=tuple(whose))


def _tell(rows: Sequence[Row]) -> None:
    """Two tables: decodes, and claims."""
    from rich.console import Console
    from rich.table import Table

    from widefield_bench.claims import claims
    from widefield_bench.results import LABELS, section

    console = Console()
    plain: dict[str, Any] = {"box": None, "pad_edge": False, "header_style": "bold"}
    table = Table("px", "who", "Mpx/s", "over tiled", "peak MiB", "dB from untiled", **plain)
    for row in section(rows, "decode"):
        cells = [row.get(name) for name in ("mpx_per_s", "over_tiled_wall", "peak_mib", "psnr_db")]
        shown = ["" if cell is None else f"{cell:,.3g}" if cell < 100 else f"{cell:,.0f}" for cell in cells]
        if "failed" in row:
            shown = ["failed", str(row["failed"]), "", ""]
        table.add_row(str(row["size_px"]), LABELS[row["who"]], *shown)
    console.print(table)
    table = Table("who", "wanted", "found", "holds", **plain)
    for claim in claims(rows):
        table.add_row(claim.who, claim.wanted, claim.found, "yes" if claim.holds else f"no: {claim.why}")
    console.print(table)
