"""The same decode by others: the same weights and latents, each called as its users call it.

    untiled    diffusers' AutoencoderKL, in one piece
    sliced     with `enable_slicing`, which takes pictures of a batch one at a time: one picture it cannot help
    tiled      with `enable_tiling`, in tiles of 64 latents, blended where they overlap
    compiled   untiled, through `torch.compile`
    whole ort, whole openvino    the decoder exported in one piece, untiled, by torch.onnx for ONNX Runtime, and by
                                 `openvino.convert_model` for OpenVINO; float32

`prepare` is everything that a program does once: loading, exporting, compiling for the latents' shape. What it returns
decodes: (3, height, width) float32 in [-1, 1]. What a peer cannot do, it says by an exception of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PEERS = ("untiled", "sliced", "tiled", "compiled", "whole ort", "whole openvino")
TILE_CELLS = 64
Decode = Callable[[], NDArray[np.float32]]


def prepare(who: str, checkpoint: str, latents: NDArray[np.float32], threads: int) -> Decode:
    """One of PEERS, ready to decode latents (channels, rows, columns) as a pipeline returns them."""
    import torch
    from diffusers import AutoencoderKL

    from widefield_export.families import latent_affine

    torch.set_num_threads(threads)
    vae = AutoencoderKL.from_pretrained(checkpoint, low_cpu_mem_usage=False).eval()
    mean, std = latent_affine(vae)
    z = torch.from_numpy(latents)[None] * std + mean
    match who:
        case "compiled":
            return _compiled(vae, z)
        case "whole ort":
            return _on_onnxruntime(_in_one_piece(vae), z, threads)
        case "whole openvino":
            return _on_openvino(_in_one_piece(vae), z, threads)
        case "sliced":
            vae.enable_slicing()
        case "tiled":
            vae.enable_tiling()
            vae.tile_latent_min_size = TILE_CELLS
            vae.tile_sample_min_size = TILE_CELLS * 2 ** (len(vae.config.block_out_channels) - 1)
        case "untiled":
            pass
        case _:
            raise ValueError(f"no peer {who!r}; there are {', '.join(PEERS)}")

    def decode() -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(vae.decode(z).sample[0])

    return decode


def _in_one_piece(vae: Any) -> Any:
    """Latents to values as one module, which exporters ask for."""
    import torch

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder, self.before = vae.decoder, getattr(vae, "post_quant_conv", None)

        def forward(self, z: Any) -> Any:
            return self.decoder(z if self.before is None else self.before(z))

    return Whole().eval()


def _compiled(vae: Any, z: Any) -> Decode:
    """The first call compiles, and is not what is timed."""
    import torch

    run: Any = torch.compile(_in_one_piece(vae), dynamic=False)

    def decode() -> NDArray[np.float32]:
        with torch.inference_mode():
            return np.asarray(run(z)[0])

    decode()
    return decode


def _on_onnxruntime(whole: Any, z: Any, threads: int) -> Decode:
    import onnxruntime
    import torch

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        with torch.inference_mode():
            torch.onnx.export(whole, (z,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: z.numpy()}
    return lambda: np.asarray(session.run(None, feeds)[0][0])


def _on_openvino(whole: Any, z: Any, threads: int) -> Decode:
    import openvino
    import torch

    with torch.no_grad():
        small = torch.zeros(*z.shape[:2], 8, 8)  # to trace with; the graph is for every size until it is given one
        graph = openvino.convert_model(whole, example_input=small)
    graph.reshape(list(z.shape))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(graph, "CPU", settings)
    return lambda: np.asarray(compiled(z.numpy())[0][0])
