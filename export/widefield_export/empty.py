"""Modules of other people's libraries without their weights: names and shapes, no memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from widefield.errors import BadCheckpoint, first_line


def build(library: str, family: str, config: Mapping[str, Any], where: Path) -> Any:
    """The module of a class of diffusers or transformers: parameters without memory, buffers as computed.

    BadCheckpoint for a class that is not there and a config that does not fit it.
    """
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    kind = getattr({"diffusers": diffusers, "transformers": transformers}[library], family, None)
    if kind is None:
        raise BadCheckpoint(f"{where} has class {family}, which this {library} lacks; install a newer one")
    try:
        with warnings.catch_warnings(), init_empty_weights(include_buffers=False):
            warnings.simplefilter("ignore")
            if library == "diffusers":
                return kind.from_config(dict(config))
            return kind(kind.config_class.from_dict(dict(config)))
    except Exception as cause:  # the config is the user's, and both libraries raise what their constructors meet
        raise BadCheckpoint(
            f"{where}: no {family} can be built from its config ({first_line(cause)}); wanted one that fits its class; "
            "download it again"
        ) from cause
