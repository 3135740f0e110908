"""A checkpoint to a bundle by command, and what its makers' mistakes end in."""

import json
import shutil
import stat

import pytest

from cli.runner import run, start


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder as diffusers saves an autoencoder."""
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints") / "taef"
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), upsampling_scaling_factor=2,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_export_then_inspect(checkpoint, tmp_path, capsys):
    out = tmp_path / "taef.wf"
    answer = start("export", checkpoint, "-o", out, "--json")
    assert answer.json()["family"] == "AutoencoderTiny" and answer.err == ""
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in out.iterdir())
    about = run(capsys, "inspect", out, "--verify", "--json").json()
    assert (about["name"], about["scale"]) == ("taef", 2) and "config.json" in " ".join(about["source"])
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert "pass --overwrite" in run(capsys, "export", checkpoint, "-o", out).fault()
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_bad_checkpoints(checkpoint, tmp_path, capsys):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    out = tmp_path / "out.wf"
    weights = copy / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    assert "safetensors" in run(capsys, "export", copy, "-o", out).fault()
    weights.rename(copy / "diffusion_pytorch_model.bin")
    assert "pickle" in run(capsys, "export", copy, "-o", out).fault()
    weights.write_bytes(data)
    (copy / "config.json").write_text(json.dumps({"_class_name": "AutoencoderOfMine"}))
    assert "AutoencoderOfMine" in run(capsys, "export", copy, "-o", out).fault()
    assert "no folder" in run(capsys, "export", checkpoint, "-o", tmp_path / "no" / "out.wf").fault()
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]
