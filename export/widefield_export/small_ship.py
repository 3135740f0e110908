"""Put a trained small pipeline where it is committed and where the wheel takes it from.

    python -m widefield_export.small_ship --autoencoder RUN --flow RUN [--checkpoint FOLDER] [--bundle FOLDER]

RUN are folders of train_worlds and train_flow. FOLDER becomes a pipeline of diffusers with weights in half precision,
with both runs' cards in training.json; its README.md stays. The bundle is `widefield export FOLDER --weights float16`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from widefield.errors import BadRequest, WidefieldError
from widefield_export.commands import export_bundle
from widefield_export.small_pipeline import save_half

ROOT = Path(__file__).parents[2]
CARD = "training.json"


def read_card(run: Path) -> dict[str, Any]:
    """What a run says of itself; its commands as from the folder that the run's is in."""
    if not (run / CARD).is_file():
        raise BadRequest(f"no {CARD} in {run}; wanted a run's folder; train first")
    card: dict[str, Any] = json.loads((run / CARD).read_text().replace(f"{run.absolute().parent}/", ""))
    return card


def ship(autoencoder: Path, flow: Path, checkpoint: Path, bundle: Path) -> dict[str, int]:
    """Write checkpoint and bundle anew; gives the bytes of the checkpoint's weights and of the bundle."""
    cards = {"autoencoder": read_card(autoencoder), "flow": read_card(flow)}
    kept = checkpoint / "README.md"
    readme = kept.read_bytes() if kept.is_file() else None
    shutil.rmtree(checkpoint, ignore_errors=True)
    nbytes = save_half(flow / "pipeline", checkpoint, autoencoder=autoencoder / "vae")
    (checkpoint / CARD).write_text(json.dumps(cards, indent=1) + "\n")
    if readme is not None:
        kept.write_bytes(readme)
    manifest = export_bundle(checkpoint, bundle, overwrite=True, asked={"weights": "float16"})
    return {"weights_nbytes": nbytes, "bundle_nbytes": sum(file["nbytes"] for file in manifest["files"].values())}


def main(argv: list[str] | None = None) -> int:
    """Ship, and print the sizes as JSON."""
    parser = argparse.ArgumentParser(prog="python -m widefield_export.small_ship", allow_abbrev=False)
    parser.add_argument("--autoencoder", type=Path, required=True, help="a run of train_worlds")
    parser.add_argument("--flow", type=Path, required=True, help="a run of train_flow")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "export/embedded", help="(%(default)s)")
    parser.add_argument("--bundle", type=Path, default=ROOT / "runtime/widefield/embedded", help="(%(default)s)")
    options = parser.parse_args(argv)
    try:
        print(json.dumps(ship(**vars(options))))
    except WidefieldError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
