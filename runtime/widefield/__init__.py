"""Widefield: pictures too large to hold, decoded, generated and served tile by tile in a planned memory budget.

For example:

    import widefield
    model = widefield.open("vae.wf")
    model.decode("latents.npy").save("picture.tif", memory="2GiB")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from widefield.model import Model

__version__ = "0.1.0"
__all__ = ["__version__", "open"]


def open(bundle: Path | str | None = None) -> Model:  # noqa: A001
    """The model in a bundle's folder; None opens the embedded checkpoint. See widefield.model.Model."""
    from widefield.model import open as open_model

    return open_model(bundle)
