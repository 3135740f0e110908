"""What kind of picture a run makes, in IPTC's words, and what else its metadata tells of where it came from.

A picture drawn from a prompt is trainedAlgorithmicMedia. One that enlarges a photograph shows what that one shows, with
detail that a model drew: compositeWithTrainedAlgorithmicMedia. Decoding only turns latents into pixels, so its
picture is of the kind that its latents are; a .zarr that `widefield encode` wrote says that it came from a picture, and
every pixel still passed through a trained model: composite, too. Latents that do not say where they are from count as
drawn by a model, which is what latents mostly are, and which hides nothing; who knows better says so
(--source-type).
"""

from __future__ import annotations

import json
from pathlib import Path

from widefield.store.provenance import ALTERED, DRAWN


def kind_of_latents(name: str) -> str:
    """The source type of latents that were opened under a name: a path, or what stands for an array."""
    try:
        attributes = json.loads((Path(name) / "zarr.json").read_bytes())["attributes"]
        return ALTERED if "image" in attributes else DRAWN
    except (OSError, ValueError, KeyError, TypeError):
        return DRAWN
