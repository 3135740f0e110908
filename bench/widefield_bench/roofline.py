"""How near parts of a decode come to what the machine can do: its two ceilings, measured, and the parts under them.

    attainable FLOP/s = min(matmul FLOP/s, intensity * copy bytes/s)        intensity = FLOP / byte that has to move

Ceilings  the best of torch's and OpenVINO's product of two square float32 matrices; a copy, read and written, of arrays
          far larger than the caches. Both with the threads that are measured.
Parts     `flop` by the formula; `nbytes` what has to be read and written at least once, weights included: traffic
          inside an engine's graph is the engine's own business. Median of some runs, warm.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from widefield_bench.gpu import Clock

CHANNELS = (16, 32, 64, 96)  # of the embedded decoder's stages, from the pixels inwards


@dataclass(frozen=True, slots=True)
class Part:
    """Something that runs, its work, and the bytes that it cannot avoid."""

    name: str
    by: str
    run: Callable[[], Any]
    flop: float
    nbytes: float


def ceilings(threads: int, *, side: int = 2048, copy_nbytes: int = 1 << 29, repeats: int = 7) -> dict[str, Any]:
    """`gflops` of the product, and by whom; `gbps` of a copy."""
    import torch

    torch.set_num_threads(threads)
    clock = Clock("cpu", repeats, 1)
    a, b = torch.randn(2, side, side)
    products = {"torch": lambda: a @ b}
    engine = _graph_engine("openvino", _product(side), {"a": (side, side), "b": (side, side)}, threads)
    if engine is not None:
        out = np.empty((side, side), np.float32)
        products["openvino"] = lambda: engine.run({"a": a.numpy(), "b": b.numpy()}, {"y": out})
    times = {name: clock.quantiles_ms(run)[1] for name, run in products.items()}
    best = min(times, key=lambda name: times[name])
    source = torch.randn(copy_nbytes // 4)
    target = torch.empty_like(source)
    copy_ms = clock.quantiles_ms(lambda: target.copy_(source))[1]
    return {
        "gflops": round(2 * side**3 / times[best] / 1e6, 1),
        "gflops_by": best,
        "gbps": round(2 * copy_nbytes / copy_ms / 1e6, 2),
        "threads": threads,
        "side": side,
    }


def parts(threads: int, *, side: int = 512, tokens: int = 2048) -> Iterator[Part]:
    """Convolutions on each engine and in torch, attention to a summary's keys, pixels from values, and halving."""
    rng = np.random.default_rng(0)
    for k, channels in enumerate(CHANNELS):
        n = max(16, side >> k)
        yield from _convolutions(channels, n, threads, rng)
    yield from _attention(tokens, threads, rng)
    yield from _pixels(side, rng)


def measured(threads: int, limits: dict[str, Any], *, side: int = 512, repeats: int = 15) -> list[dict[str, Any]]:
    """A row a part: its time, rates, and what part of its ceiling that is."""
    rows = []
    for part in parts(threads, side=side):
        p20, p50, p80 = Clock("cpu", repeats, 2).quantiles_ms(part.run)
        intensity = part.flop / part.nbytes
        ceiling = min(limits["gflops"], intensity * limits["gbps"])
        gflops = part.flop / p50 / 1e6
        rows.append(
            {
                "part": part.name,
                "by": part.by,
                "ms": [round(p, 4) for p in (p20, p50, p80)],
                "flop_per_byte": round(intensity, 3),
                "gflops": round(gflops, 2),
                "of_ceiling": round(gflops / ceiling, 3),
                "bound": "matmul" if ceiling == limits["gflops"] else "copy",
            }
        )
    return rows


def _convolutions(channels: int, n: int, threads: int, rng: np.random.Generator) -> Iterator[Part]:
    """3 x 3, as many channels out as in, on n x n; torch's own beside the engines'."""
    import torch

    x = rng.standard_normal((1, channels, n, n), np.float32)
    weight = rng.standard_normal((channels, channels, 3, 3), np.float32)
    flop, nbytes = 2.0 * 9 * channels**2 * n * n, float(2 * x.nbytes + weight.nbytes)
    name = f"3x3, {channels} ch, {n} px"
    for backend in ("ort", "openvino"):
        engine = _graph_engine(backend, _convolution(weight, n), {"x": x.shape}, threads)
        if engine is not None:
            out = np.empty_like(x)
            yield Part(name, backend, partial(engine.run, {"x": x}, {"y": out}), flop, nbytes)
    given, kernel = torch.from_numpy(x), torch.from_numpy(weight)

    def eager() -> Any:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(given, kernel, padding=1)

    yield Part(name, "torch", eager, flop, nbytes)


def _attention(tokens: int, threads: int, rng: np.random.Generator) -> Iterator[Part]:
    """The embedded bundle's, of a tile's queries to a summary's keys."""
    import widefield
    from widefield.attend import Attention
    from widefield.engine import EngineOptions

    bundle = widefield.open().bundle
    width = bundle.decoder.attentions[0].width
    keys = rng.standard_normal((tokens, width), np.float32)
    query = rng.standard_normal((1, tokens, width), np.float32)
    attend = Attention(bundle.file(str(bundle.manifest["attention"])), keys, EngineOptions("ort", "f32", threads))
    flop, nbytes = 4.0 * tokens * tokens * width, float(2 * query.nbytes + keys.nbytes)
    yield Part(f"attention, {tokens} keys", "ort", lambda: attend(query), flop, nbytes)


def _pixels(side: int, rng: np.random.Generator) -> Iterator[Part]:
    """Values to uint8 and their halves: scaling, rounding and clipping are 4 FLOP a value, a box mean 1 of a value."""
    from widefield_kernels.epilogue import to_levels_reference

    x = rng.uniform(-1.1, 1.1, (3, side, side)).astype(np.float32)
    pixels, half = np.empty((side, side, 3), np.uint8), np.empty((side // 2, side // 2, 3), np.uint8)
    nbytes = float(x.nbytes + pixels.nbytes + half.nbytes)
    yield Part("to pixels and halves", "numpy", lambda: to_levels_reference(x, pixels, half), 5.0 * x.size, nbytes)


def _convolution(weight: np.ndarray[Any, Any], n: int) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    channels = weight.shape[0]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, n, n)) for name in "xy"]
    return helper.make_graph([node], "convolution", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])


def _product(side: int) -> Any:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (side, side)) for name in "aby"]
    return helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "product", ends[:2], ends[2:])


def _graph_engine(backend: str, graph: Any, shapes: dict[str, tuple[int, ...]], threads: int) -> Any:
    """The runtime's engine for a graph made here; None where that engine is not installed."""
    import onnx

    from widefield.engine import EngineOptions, open_engine
    from widefield.errors import MissingBackend

    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        onnx.save(model, os.fspath(path))
        try:
            return open_engine(path, shapes, {}, EngineOptions(backend, "f32", threads, 1, True))
        except MissingBackend:
            return None
