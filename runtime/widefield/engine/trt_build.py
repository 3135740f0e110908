"""Build a TensorRT engine from a skeleton: strongly typed, weights by pointer into the bundle's own file.

A 10 GB denoiser is mapped and handed to the parser as addresses, so nothing of it is copied before the builder does.
The builder needs the GPU that the engine is for; TensorRT-RTX builds without one, for the capabilities that it is told.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from widefield.engine.graphs import mapped
from widefield.engine.trt_bindings import check_capability, is_rtx, make_logger
from widefield.engine.trt_graph import Skeleton
from widefield.errors import UnsupportedGraph, WidefieldError

Progress = Callable[[str, int, int], None]
FUSED_WIDTHS = range(16, 257)  # of attention heads; wider ones, and float32, are taken apart


def build_engine(
    trt: Any,
    skeleton: Skeleton,
    *,
    capabilities: Sequence[str] = (),
    timing: bytes | None = None,
    workspace_nbytes: int | None = None,
    progress: Progress | None = None,
) -> tuple[memoryview, bytes]:
    """(engine, timing cache); the engine is the builder's own memory, not a copy. `capabilities` as "89" are for
    TensorRT-RTX alone, where they replace this machine's GPU.

    UnsupportedGraph lists what the parser refused, with node names; WidefieldError what the builder said.
    """
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    files: dict[str, mmap.mmap] = {}
    parser = _parse(trt, network, logger, skeleton, files)
    _take_apart(trt, network)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if workspace_nbytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_nbytes)
    if progress is not None:
        config.progress_monitor = make_monitor(trt, progress)
    if capabilities:
        _aim(trt, config, capabilities)
    if not is_rtx(trt):  # which times nothing when it builds
        config.set_timing_cache(config.create_timing_cache(timing or b""), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    del parser
    if plan is None:
        said = "; ".join(logger.errors[-3:]).replace("\n", " ") or "nothing"
        raise WidefieldError(
            f"{skeleton.path}: TensorRT could not build an engine and said: {said}; take --engine torch or ort"
        )
    kept = None if is_rtx(trt) else config.get_timing_cache()
    return memoryview(plan).cast("B"), b"" if kept is None else bytes(kept.serialize())


def _parse(trt: Any, network: Any, logger: Any, skeleton: Skeleton, files: dict[str, mmap.mmap]) -> Any:
    """The parser, which has to live as long as the network: it owns what the weights' addresses point to."""
    parser = trt.OnnxParser(network, logger)
    if hasattr(parser, "load_initializer"):
        good = parser.load_model_proto(skeleton.model, str(skeleton.path))
        for name, (file, offset, length) in skeleton.places.items():
            good = good and parser.load_initializer(name, _address(skeleton.path, files, file) + offset, length)
        good = good and parser.parse_model_proto()
    else:  # TensorRT before 10.13 reads the weights itself
        good = parser.parse(skeleton.model, str(skeleton.path))
    if not good:
        raise UnsupportedGraph(parser_errors(parser, skeleton.path))
    return parser


def _address(path: Path, files: dict[str, mmap.mmap], name: str) -> int:
    return int(np.frombuffer(mapped(path, files, name), np.uint8).ctypes.data)


def parser_errors(parser: Any, path: Path) -> str:
    """One line: every error with the node that it is about."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [f"{e.node_operator()} {e.node_name() or e.node()}: {' '.join(e.desc().split())}" for e in errors]
    return f"{path}: TensorRT's parser refused {'; '.join(said) or 'it'}; take --engine torch or ort"


def _take_apart(trt: Any, network: Any) -> None:
    """Attention layers that no fused kernel does would fail the build unless they may be taken apart."""
    kind = getattr(trt.LayerType, "ATTENTION_OUTPUT", None)
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionOutputLayer
            query = network.get_layer(index - 1).get_input(0)
            wide = query is not None and (query.shape[-1] not in FUSED_WIDTHS or query.dtype == trt.DataType.FLOAT)
            layer.attention.decomposable = bool(wide)


def _aim(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    if not is_rtx(trt):
        raise WidefieldError(
            "TensorRT builds for the GPU that it runs on alone; leave the capability out, or install rtx"
        )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        check_capability(trt, capability)
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)


def make_monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's monitor that tells `progress` of every phase: (its name, steps done, of how many).

    TensorRT calls it from threads of its own, several at once; `progress` is called by one at a time.
    """
    turns = threading.Lock()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with turns:
                self.steps[phase_name] = num_steps
                progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with turns:
                progress(phase_name, step + 1, self.steps.get(phase_name, 0))
            return True

        def phase_finish(self, phase_name: str) -> None:
            with turns:
                progress(phase_name, self.steps.get(phase_name, 0), self.steps.pop(phase_name, 0))

    return Monitor()
