"""Rewrites of a local program that are exact in real arithmetic and pay on every device.

shapes    runs of reshape and transpose collapse; what only moves unit axes vanishes
linear    two linear maps in a row become one (the attention's value and output projections)
upsample  nearest 2x followed by a 3 x 3 convolution is a 2 x 2 convolution with summed taps to four phases, then
          depth to space: 16 multiplications where there were 36. A window that starts at x[j] makes the output
          pixels 2j+1 (phase 0: taps w0+w1, w2) and 2j+2 (phase 1: taps w0, w1+w2), so no phase has to be shifted.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from widefield_export.program import Axis, Layout, Op, Program


def rewrite(program: Program) -> Program:
    """All of them, in the order that lets each see what the one before made."""
    for step in (collapse_shapes, merge_linear, collapse_shapes, fold_upsampling):
        program = step(program)
    return program.pruned()


def _replace_uses(ops: list[Op], old: str, new: str) -> list[Op]:
    return [replace(op, args=tuple(new if a == old else a for a in op.args)) if old in op.args else op for op in ops]


def _long_axes(layout: Layout) -> list[Axis]:
    return [axis for axis in layout if axis != Axis("plain", 1)]


def collapse_shapes(program: Program) -> Program:
    """Drop reshapes that change nothing, turn transposes that move unit axes only into reshapes, join reshapes."""
    layouts = program.layouts()
    made: dict[str, Op] = {}
    ops: list[Op] = []
    alias: dict[str, str] = {}
    for op in program.ops:
        args = tuple(alias.get(a, a) for a in op.args)
        op = replace(op, args=args)
        if op.kind == "transpose":
            before = layouts[args[0]]
            order = [i for i in op.attrs["order"] if before[i] != Axis("plain", 1)]
            if order == sorted(order):
                op = replace(op, kind="reshape", attrs={})
        if op.kind == "transpose" and args[0] in made and made[args[0]].kind == "transpose":
            inner = made[args[0]]
            order = [inner.attrs["order"][i] for i in op.attrs["order"]]
            if order == sorted(order):
                alias[op.out] = inner.args[0]
                continue
            op = replace(op, args=inner.args, attrs={"order": order})
        if op.kind == "reshape":
            source = args[0]
            while source in made and made[source].kind == "reshape":
                source = made[source].args[0]
            if layouts[source] == op.layout:
                alias[op.out] = source
                continue
            op = replace(op, args=(source,))
        made[op.out] = op
        ops.append(op)
    output = alias.get(program.output, program.output)
    return replace_program(program, ops, output).pruned()


def replace_program(program: Program, ops: list[Op], output: str | None = None) -> Program:
    """The same program with other operations; weights are copied by reference."""
    return Program(
        program.name, program.input, output or program.output, program.input_layout, ops, dict(program.weights)
    )


def merge_linear(program: Program) -> Program:
    """linear, then only shape changes, then a linear map or a 1 x 1 convolution over the same channels: one map."""
    ops = list(program.ops)
    weights = dict(program.weights)
    users = program.users()
    by_name = program.by_name()
    for op in program.ops:
        pointwise = op.kind == "linear" or (op.kind == "conv" and op.attrs["kernel"] == 1 and op.attrs["groups"] == 1)
        if not pointwise or op.attrs.get("stride", 1) != 1:
            continue
        source = op.args[0]
        while source in by_name and by_name[source].kind in ("reshape", "transpose") and len(users[source]) == 1:
            source = by_name[source].args[0]
        first = by_name.get(source)
        if first is None or first.kind != "linear" or len(users[source]) != 1:
            continue
        outer, inner = weights[op.attrs["weight"]], weights[first.attrs["weight"]]
        if inner.shape[0] != inner.shape[1] or outer.shape[1] != inner.shape[0]:
            continue  # the shapes in between would change
        matrix = outer.reshape(outer.shape[0], -1).astype(np.float64)
        bias = matrix @ _bias(weights, first, inner.shape[0]) + _bias(weights, op, outer.shape[0])
        weights[f"{op.out}.merged.weight"] = (matrix @ inner).astype(np.float32).reshape(outer.shape)
        weights[f"{op.out}.merged.bias"] = bias.astype(np.float32)
        attrs = {**op.attrs, "weight": f"{op.out}.merged.weight", "bias": f"{op.out}.merged.bias"}
        ops = [replace(o, attrs=attrs) if o.out == op.out else o for o in ops if o.out != first.out]
        ops = _replace_uses(ops, first.out, first.args[0])
    program = replace_program(program, ops)
    program.weights = weights
    return program


def _bias(weights: dict[str, NDArray[np.float32]], op: Op, size: int) -> NDArray[np.float64]:
    name = op.attrs["bias"]
    return np.zeros(size) if name is None else weights[name].astype(np.float64)


def fold_upsampling(program: Program) -> Program:
    """Nearest 2x with one 3 x 3 convolution behind it becomes `upsample_conv`; its weights are four phases."""
    users = program.users()
    by_name = program.by_name()
    weights = dict(program.weights)
    folded: dict[str, Op] = {}
    for op in program.ops:
        before = by_name.get(op.args[0]) if op.kind == "conv" else None
        if before is None or before.kind != "upsample" or len(users[before.out]) != 1:
            continue
        attrs = op.attrs
        if (attrs["kernel"], attrs["before"], attrs["after"], attrs["stride"], attrs["groups"]) != (3, 1, 1, 1, 1):
            continue
        if before.attrs["factor"] != 2:
            continue
        name = attrs["weight"] + ".phases"
        weights[name] = phases(weights[attrs["weight"]])
        bias = None
        if attrs["bias"] is not None:
            bias = attrs["bias"] + ".phases"
            weights[bias] = np.repeat(weights[attrs["bias"]], 4)
        folded[op.out] = Op("upsample_conv", op.out, before.args, op.layout, {"weight": name, "bias": bias}, op.origin)
    program = replace_program(program, [folded.get(op.out, op) for op in program.ops])
    program.weights = weights
    return program.pruned()


def phases(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """(out, in, 3, 3) taps to (out * 4, in, 2, 2): channel 4 o + 2 a + b is the phase (a, b), as depth_to_space wants.

    Phase 0 is the odd output pixel 2j+1, which sees x[j], x[j+1] as (w0 + w1, w2); phase 1 the even one, (w0, w1 + w2).
    """
    w = weight.astype(np.float64)
    taps = np.zeros((2, 2, 3))  # phase, low-resolution tap, original tap
    taps[0, 0, [0, 1]] = taps[0, 1, 2] = taps[1, 0, 0] = 1
    taps[1, 1, [1, 2]] = 1
    out: NDArray[np.float64] = np.einsum("oiyx,auy,bvx->oabiuv", w, taps, taps)
    return out.reshape(w.shape[0] * 4, w.shape[1], 2, 2).astype(np.float32)
