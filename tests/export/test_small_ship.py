"""Shipping a trained small pipeline: a folder of diffusers in half precision, both cards, and the bundle of it."""

import json

import pytest
import torch
from safetensors import safe_open

from widefield.bundle import open_bundle
from widefield_export import small_ship
from widefield_export.small_pipeline import ADVICE
from widefield_export.train_flow import FlowOptions, FlowRun
from widefield_export.train_worlds import AutoencoderOptions, AutoencoderRun

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:(diffusers|huggingface_hub|transformers).*"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning"),
]


@pytest.fixture
def runs(tmp_path):
    """Folders of an autoencoder's and a flow's run of one step each."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    small = {
        "latent_channels": 4,
        "channels": (16, 20, 32, 36),
        "pool": 3,
        "pool_side": 64,
        "new_every": 1,
        "checks": 2,
    }
    sides = {"sides": (32, 48), "side_odds": (0.5, 0.5), "batch_px": 2 * 32 * 32, "basis": 3}
    AutoencoderRun(AutoencoderOptions(tmp_path / "coder", steps=1, **small, **sides)).run()
    flow = {"channels": (32, 32), "pool": 3, "first": 2, "side_px": 64, "batch": 2, "checks": 2}
    FlowRun(FlowOptions(tmp_path / "flow", steps=1, autoencoder=tmp_path / "coder" / "vae", **flow)).run()
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    return tmp_path / "coder", tmp_path / "flow"


def test_what_is_shipped_draws_and_tells_where_it_is_from(runs, tmp_path, capsys):
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    checkpoint.mkdir()
    (checkpoint / "README.md").write_text("kept")
    (checkpoint / "old.bin").write_text("not kept")
    folders = ["--autoencoder", runs[0], "--flow", runs[1], "--checkpoint", checkpoint, "--bundle", bundle]
    assert small_ship.main([str(part) for part in folders]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (checkpoint / "README.md").read_text() == "kept" and not (checkpoint / "old.bin").exists()
    weights = list(checkpoint.rglob("*.safetensors"))
    assert told["weights_nbytes"] == sum(path.stat().st_size for path in weights)
    for path in weights:
        with safe_open(path, "np") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} <= {"F16", "I64"}  # noqa: SIM118
    cards = json.loads((checkpoint / "training.json").read_text())
    assert (cards["autoencoder"]["steps"], cards["flow"]["steps"]) == (1, 1)
    for path in checkpoint.rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    made = open_bundle(bundle)
    assert made.manifest["dtype"] == made.parts.denoiser.dtype == "float16"
    assert {name: getattr(made.parts.defaults, name) for name in ADVICE} == ADVICE


def test_a_run_without_a_card_is_no_run(tmp_path, capsys):
    assert small_ship.main(["--autoencoder", str(tmp_path), "--flow", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: no training.json in {tmp_path}; wanted a run's folder; train")
