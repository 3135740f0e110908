"""Write a bundle: a folder with a manifest, one weights file and the ONNX graphs that read from it.

manifest.json          what is here, in words and numbers; widefield.bundle describes every field
weights.safetensors    all weights, rewritten ones included; the graphs point into it
decoder.squares.NN.onnx  stage NN of the sweep over squares that are measured alone, with all their margins; masked
decoder.planes.NN.onnx   the same stage over every tile of the picture, with what it reads of the tiles around; masked
decoder.{interior,border,certified}.N.onnx   the fused graphs that decode, cut at softmax attentions; `certified`
                       ones also give the true statistics of every norm, on a lattice of its rows and columns
encoder.*              the same for the encoder
attention.onnx         one block of queries against the frozen tokens
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from widefield.bundle import FORMAT, MANIFEST, VERSION
from widefield_export.program import Margin, Program, Site, channels_of, scale_of
from widefield_export.segments import Segment, cells_around, cut, flops, live_elements, own_margins
from widefield_export.to_onnx import IR_VERSION, OPSET, write_segment
from widefield_export.weights import FLOAT16, FLOAT32

WEIGHTS = "weights.safetensors"
ATTENTION = "attention.onnx"
LARGEST_STEP = 5  # of the lattice on which streaming certifies norms
KEYS_SHARE = 0.08  # of a decode's multiplications may go to a sampled attention


def write_bundle(
    folder: Path, programs: Mapping[str, Program], about: Mapping[str, Any], dtype: str = FLOAT32
) -> dict[str, Any]:
    """Write `programs` ("decoder", "encoder") and their manifest into an empty folder; returns the manifest.

    `about` holds name, family, scale, latent_channels, created and source, as they stand in the manifest. `dtype`: of
    weights as they are stored; those that float16 cannot say exactly, sums of others mostly, stay float32.
    """
    offsets = _write_weights(folder / WEIGHTS, programs, dtype)
    manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, **about, "weights": WEIGHTS, "dtype": dtype}
    manifest["components"] = {
        name: _write_component(folder, name, program, offsets[name]) for name, program in programs.items()
    }
    if any(site["kind"] == "attention" for c in manifest["components"].values() for site in c["sites"]):
        onnx.save(attention_model(), folder / ATTENTION)
        manifest["attention"] = ATTENTION
    files = sorted(p.name for p in folder.iterdir() if p.name != MANIFEST)
    manifest["files"] = {name: _file_entry(folder / name) for name in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def _file_entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"nbytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _stored(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """The array as it is stored: in half precision where that is asked for and loses nothing."""
    array = np.ascontiguousarray(array)
    if dtype == FLOAT16 and array.dtype == np.float32 and np.abs(array).max(initial=0) < np.finfo(np.float16).max:
        half = array.astype(np.float16)
        if np.array_equal(half.astype(np.float32), array):
            return half
    return array


def _write_weights(path: Path, programs: Mapping[str, Program], dtype: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Save every program's weights under `component/name`; returns each one's place in the file, by component."""
    arrays = {f"{c}/{n}": _stored(a, dtype) for c, p in programs.items() for n, a in p.weights.items()}
    save_file(arrays, path)
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    places: dict[str, dict[str, tuple[int, int]]] = {c: {} for c in programs}
    for key, entry in header.items():
        if key != "__metadata__":
            component, name = key.split("/", 1)
            start, stop = entry["data_offsets"]
            places[component][name] = 8 + length + start, stop - start
    return places


def _write_component(
    folder: Path, name: str, program: Program, offsets: Mapping[str, tuple[int, int]]
) -> dict[str, Any]:
    sites = program.sites()
    attentions = [site for site in sites if site.kind == "attention"]
    sweep = cut(program, sites)
    stream = cut(program, attentions)

    steps = {site.index: certified_step(program, site) for site in sites if site.kind == "norm"}

    def graph(
        segment: Segment,
        file: str,
        *,
        masked: bool,
        measured: Sequence[Site] = (),
        steps: dict[int, int] | None = None,
        own: dict[str, Margin] | None = None,
    ) -> dict[str, Any]:
        written = write_segment(
            program, segment, masked=masked, measured=measured, steps=steps, margins=own, offsets=offsets,
            weights_file=WEIGHTS,
        )  # fmt: skip
        onnx.save(written.model, folder / file)
        margins = program.margins() if own is None else own
        told = (
            {}
            if own is None
            else {"margins": {v: list(own[v]) for v in segment.inputs}, "mask_cells": cells_around(program, own)}
        )
        return {
            "file": file,
            "inputs": list(written.inputs),
            "outputs": list(written.outputs),
            "parameters": {key: list(shape) for key, shape in written.parameters.items()},
            "flops": _coefficients([flops(program, segment.ops, margins)])[0],
            "live_elements": _coefficients(live_elements(program, segment, margins)),
            **told,
        }

    def sweep_graph(index: int, kind: str) -> dict[str, Any]:
        stage, measured = sweep[index], sites[index : index + 1]
        own = own_margins(program, stage, measured) if kind == "planes" else None
        return graph(stage, f"{name}.{kind}.{index:02}.onnx", masked=True, measured=measured, own=own)

    names = {program.input, program.output}
    names.update(v for segment in (*sweep, *stream) for v in (*segment.inputs, *segment.outputs))
    component = {
        "input": program.input,
        "output": program.output,
        "margin_cells": program.margin_cells,
        "values": {value: _value_entry(program, value) for value in sorted(names)},
        "sites": [_site_entry(program, site.index) for site in sites],
        "sweep": {kind: [sweep_graph(i, kind) for i in range(len(sites))] for kind in ("squares", "planes")},
        "stream": {
            "interior": [graph(s, f"{name}.interior.{i}.onnx", masked=False) for i, s in enumerate(stream)],
            "border": [graph(s, f"{name}.border.{i}.onnx", masked=True) for i, s in enumerate(stream)],
            "certified": [
                graph(s, f"{name}.certified.{i}.onnx", masked=True, measured=_certifiable(sites, s), steps=steps)
                for i, s in enumerate(stream)
            ],
        },
    }
    cell = sum(flops(program, s.ops, program.margins()).a for s in stream)
    component["flops_per_cell"] = cell
    if attentions:
        width = attentions[0].attrs["width"]
        component["keys"] = 1 << max(8, int(np.log2(KEYS_SHARE * cell / (4 * width))))
    return component


def certified_step(program: Program, site: Site) -> int:
    """Every how many-th row and column a norm is certified on. Odd, so that no phase of an upsampling is left out."""
    layout = program.layout(site.value)
    scale = scale_of(layout) or 1
    return 1 if len(layout) != 4 or scale == 1 else 3 if scale == 2 else LARGEST_STEP


def _certifiable(sites: Sequence[Site], segment: Segment) -> list[Site]:
    """The sites whose true statistics a fused graph can give: norms, where the value is at hand in this segment."""
    at_hand = {op.out for op in segment.ops} | set(segment.inputs)
    return [
        site
        for site in sites
        if site.kind == "norm" and site.value in at_hand and any(op.out == site.op for op in segment.ops)
    ]


def _coefficients(found: Iterable[Any]) -> list[list[int]]:
    return [[q.a, q.b, q.c] for q in found]


def _value_entry(program: Program, value: str) -> dict[str, Any]:
    layout = program.layout(value)
    return {
        "axes": [axis.size if axis.role == "plain" else axis.role for axis in layout],
        "channels": channels_of(layout),
        "scale": scale_of(layout),
        "margin": list(program.margins()[value]),
    }


def _site_entry(program: Program, index: int) -> dict[str, Any]:
    site = program.sites()[index]
    op = program.op(site.op)
    value = op.args[0] if site.kind == "linear_attention" else site.value
    told = ("groups", "eps", "channels", "gamma", "beta", "width", "shape")
    entry = {
        "kind": site.kind, "result": site.op, "origin": site.origin, "scale": scale_of(program.layout(value)),
        **{k: v for k, v in site.attrs.items() if k in told},
    }  # fmt: skip
    if site.kind == "attention":
        entry["query"] = op.args[0]
    return entry


def attention_model() -> onnx.ModelProto:
    """softmax(query @ keys') @ keys for (queries, width) and (tokens, width); the scale is in the query already."""
    nodes = [
        helper.make_node("Transpose", ["keys"], ["keys_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["query", "keys_t"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "keys"], ["result"]),
    ]
    shapes = {"query": ["queries", "width"], "keys": ["tokens", "width"], "result": ["queries", "width"]}
    info = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    graph = helper.make_graph(nodes, "attention", [info["query"], info["keys"]], [info["result"]])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="widefield"
    )
