"""Bundles that are damaged, newer, or not to be trusted: one line, and nothing is made with them."""

import json
import re

import pytest

from cli.runner import QUICK, run


def rewritten(folder, change) -> None:
    """Apply `change` to a bundle's manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def flipped(path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["weights.safetensors", "decoder.border.1.onnx", "attention.onnx"])
def test_a_flipped_bit_is_found_before_anything_is_made(name, copied, latents, tmp_path, capsys):
    flipped(copied / name, (copied / name).stat().st_size // 2)
    assert name in run(capsys, "inspect", copied, "--verify").fault()
    line = run(capsys, "decode", copied, latents, "-o", tmp_path / "o.tif", *QUICK).fault()
    assert f"{name} has SHA-256" in line and "damaged" in line
    assert [p.name for p in tmp_path.iterdir()] == [copied.name]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(version=99), "version 99, this runtime reads up to 2; update widefield"),
        (lambda m: m.update(format="zip"), "does not say format"),
        (lambda m: m["files"].update({"../evil": {"nbytes": 1, "sha256": ""}}), r"'\.\./evil', outside its folder"),
        (lambda m: m["files"].update({"/etc/passwd": {"nbytes": 1, "sha256": ""}}), "outside its folder"),
        (lambda m: m.pop("components"), "lacks or garbles"),
        (lambda m: m["components"]["decoder"].pop("values"), "lacks or garbles"),
        (lambda m: m.pop("files"), "lists no files"),
        (lambda m: m.update(scale="eight"), "lacks or garbles"),
        (lambda m: m["files"]["weights.safetensors"].update(nbytes=7), "the manifest says 7"),
    ],
)
def test_bad_manifests(change, said, copied, latents, tmp_path, capsys):
    rewritten(copied, change)
    assert re.search(said, run(capsys, "decode", copied, latents, "-o", tmp_path / "o.tif", *QUICK).fault())
    assert re.search(said, run(capsys, "inspect", copied).fault())
    assert [p.name for p in tmp_path.iterdir()] == [copied.name]


@pytest.mark.parametrize("name", ["weights.safetensors", "decoder.interior.0.onnx", "manifest.json"])
def test_a_missing_or_cut_file_of_a_bundle(name, copied, capsys):
    path = copied / name
    path.write_bytes(path.read_bytes()[:100])
    assert name in run(capsys, "inspect", copied).fault()
    path.unlink()
    assert name in run(capsys, "inspect", copied).fault()
