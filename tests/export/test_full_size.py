"""Exporting the largest denoisers takes little memory: their weights are never there. Minutes; marked slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from house.places import environment

SDXL = {
    "act_fn": "silu", "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "in_channels": 4,
    "layers_per_block": 2, "out_channels": 4, "projection_class_embeddings_input_dim": 2816, "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
FLUX = {
    "attention_head_dim": 128, "guidance_embeds": True, "in_channels": 64, "joint_attention_dim": 4096,
    "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38, "patch_size": 1,
    "pooled_projection_dim": 768,
}  # fmt: skip
CASES = {"SDXL": ("UNet2DConditionModel", SDXL, 77, 2.5e9), "FLUX.1-dev": ("FluxTransformer2DModel", FLUX, 512, 11.8e9)}
LIMIT_NBYTES = 2 << 30

EXPORT = """
import json, resource, sys
from pathlib import Path
import torch
from widefield_export.denoisers import Window, denoiser
from widefield_export.empty import build
from widefield_export.graph_onnx import write_graph

family, config, tokens, folder = json.loads(sys.argv[1])
model = build("diffusers", family, config, Path(folder)).eval()
places, offset = {}, 64
for name, value in model.state_dict().items():
    places[name] = offset, 4 * value.numel()
    offset += 4 * value.numel()
weights = Path(folder, "w.safetensors")
with weights.open("wb") as file:
    file.truncate(offset)  # a hole: it takes no room on the disk, and nobody looks into it
# Shared: Linux refuses a private mapping, of which every page might be copied, that is larger than its memory.
mapped = torch.from_file(str(weights), shared=True, size=offset, dtype=torch.uint8)
tensors = {
    name: mapped[at : at + n].view(torch.float32).reshape(value.shape)
    for (name, value), (at, n) in zip(model.state_dict().items(), places.values())
}
model.load_state_dict(tensors, assign=True)
made = denoiser(model, Window(128, 128), tokens)
path = Path(folder, "denoiser.onnx")
written = write_graph(made.module, made.inputs, ("m",), path, places=places, weights="w.safetensors", prefix="model")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps([peak, path.stat().st_size, offset // 4, written.live_nbytes]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", list(CASES))
def test_export_at_full_size_stays_under_two_gib(name, tmp_path: Path):
    family, config, tokens, parameters = CASES[name]
    asked = json.dumps([family, config, tokens, str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, asked], env=environment(), capture_output=True, text=True, timeout=1400
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, graph_nbytes, elements, live = json.loads(done.stdout.splitlines()[-1])
    assert elements > parameters, "the whole model"
    assert peak < LIMIT_NBYTES, f"{peak / 2**30:.2f} GiB"
    assert graph_nbytes < 16 << 20 and live > 1 << 20
