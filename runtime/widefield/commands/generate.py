"""`widefield generate`: a prompt in, a picture of any size out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from widefield.commands import arguments
from widefield.commands.drawing import draw, draw_together, drawing_options, keywords
from widefield.commands.together import Order
from widefield.options import parse_size


@click.command("generate", cls=arguments.Command, short_help="A prompt in, a picture of any size out.")
@click.argument("prompt", metavar="PROMPT")
@arguments.option(
    "--size", required=True, type=parse_size, metavar="WIDTHxHEIGHT", section="Files",
    help="Of the picture, in pixels.",
)  # fmt: skip
@drawing_options
def generate(
    prompt: str, size: tuple[int, int], out: Path, bundle: Path | None, as_json: bool, quiet: bool, **asked: Any
) -> int | None:
    """Draw a picture of any size from a prompt, level by level, each from the one below it.

    A small picture is drawn first; it is enlarged and given detail until it has its size. Stopped, the same command
    goes on. With --region only what those pixels depend on is computed, and they are those of the whole picture.

    \b
    widefield generate "islands at dawn" --size 4096x4096 -o islands.tif
    widefield generate "islands at dawn" --size 524288x524288 --region 262144:263168,262144:263168 -o middle.png
    """
    if asked["cluster"] is not None:
        order = Order("generate", bundle, (prompt,), {"size": size, **keywords(asked)}, out)
        return draw_together(order, asked, as_json=as_json, quiet=quiet)
    model = arguments.open_model(bundle, verify=True)
    picture = model.generate(prompt, size=size, **keywords(asked))
    return draw(picture, out, asked, as_json=as_json, quiet=quiet)
