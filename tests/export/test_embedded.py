"""The embedded bundle is what the export makes of the checkpoint in the repository, to the last bit."""

from __future__ import annotations

from pathlib import Path

import widefield
from widefield.bundle import open_bundle
from widefield_export.commands import export_bundle

CHECKPOINT = Path(__file__).parents[2] / "export" / "embedded"


def test_the_embedded_bundle_is_the_export_of_the_checkpoint(tmp_path):
    export_bundle(CHECKPOINT, tmp_path / "made")
    made, shipped = open_bundle(tmp_path / "made"), widefield.open().bundle
    assert made.manifest["source"] == shipped.manifest["source"]
    assert made.manifest["files"] == shipped.manifest["files"], "export it again, and commit what changed"
    assert made.manifest["components"] == shipped.manifest["components"]
    shipped.verify()


def test_the_embedded_bundle_is_small():
    files = widefield.open().bundle.manifest["files"].values()
    assert sum(entry["nbytes"] for entry in files) <= 8 << 20
