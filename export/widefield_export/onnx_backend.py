"""The operations of a program as ONNX nodes: what emit.Walk asks a backend for.

A weight that is stored in half precision is cast, once, when an engine loads the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from widefield_export.program import Layout, Op, Program


@dataclass
class OnnxBackend:
    """Handles are names of ONNX values."""

    program: Program
    half: frozenset[str] = frozenset()  # weights that are stored in half precision
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, NDArray[Any]] = field(default_factory=dict)
    external: dict[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cache: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def node(self, kind: str, inputs: Sequence[str], *, name: str = "", **attrs: Any) -> str:
        """Add a node; the name of its one result."""
        out = name or f"{kind.lower()}:{len(self.nodes)}"  # the program's own values have names like add_5
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"{kind}:{out}", **attrs))
        return out

    def ints(self, *values: int) -> str:
        """A constant int64 vector."""
        name = "i64_" + "_".join(str(v) for v in values).replace("-", "m")
        self.initializers.setdefault(name, np.array(values, np.int64))
        return name

    def number(self, value: float) -> str:
        """A constant float32 scalar."""
        name = f"f32_{float(value)!r}"
        self.initializers.setdefault(name, np.array(value, np.float32))
        return name

    def weight(self, name: str) -> str:
        """A weight of the program, which stays in the weights file; in float32."""
        if name not in self.external:
            self.external[name] = self.program.weights[name].shape
            if name in self.half:
                self.node("Cast", [name], name=f"{name}.float32", to=TensorProto.FLOAT)
        return f"{name}.float32" if name in self.half else name

    def extent(self, x: str, axis: int, scale: int, margin: int) -> str:
        size = self.node("Shape", [x], start=axis, end=axis + 1)
        size = self.node("Sub", [size, self.ints(margin)])
        return size if scale == 1 else self.node("Div", [size, self.ints(scale)])

    def grown(self, cells: str, scale: int, margin: int) -> str:
        key = ("grown", cells, scale, margin)
        if key not in self.cache:
            size = cells if scale == 1 else self.node("Mul", [cells, self.ints(scale)])
            self.cache[key] = self.node("Add", [size, self.ints(margin)])
        return self.cache[key]

    def crop(self, x: str, axes: Sequence[int], low: int, high: int) -> str:
        far = -high if high else np.iinfo(np.int64).max
        return self.node(
            "Slice", [x, self.ints(*[low] * len(axes)), self.ints(*[int(far)] * len(axes)), self.ints(*axes)]
        )

    def reshape(self, x: str, shape: Sequence[int | str]) -> str:
        if all(isinstance(size, int) for size in shape):
            return self.node("Reshape", [x, self.ints(*shape)])  # type: ignore[arg-type]
        parts = [size if isinstance(size, str) else self.ints(size) for size in shape]
        return self.node("Reshape", [x, self.node("Concat", parts, axis=0)])

    def multiply(self, x: str, y: str) -> str:
        return self.node("Mul", [x, y])

    def upsample(self, x: str, factor: int) -> str:
        scales = f"scales_{factor}"
        self.initializers.setdefault(scales, np.array([1, 1, factor, factor], np.float32))
        return self.node(
            "Resize", [x, "", scales], mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
        )

    def parameter(self, name: str, layout: Layout) -> str:
        self.parameters[name] = tuple(axis.size if axis.role != "batch" else 1 for axis in layout)
        return name

    def affine(self, x: str, scale: str, shift: str) -> str:
        return self.node("Add", [self.node("Mul", [x, scale]), shift])

    def every(self, x: str, step: int) -> str:
        stop = int(np.iinfo(np.int64).max)
        return self.node("Slice", [x, self.ints(0, 0), self.ints(stop, stop), self.ints(2, 3), self.ints(step, step)])

    def thin(self, x: str, step: int, channels: int) -> str:
        """A depthwise 1 x 1 convolution with a stride: unlike a Slice it runs in the engines' blocked layouts."""
        ones = f"ones_{channels}"
        self.initializers.setdefault(ones, np.ones((channels, 1, 1, 1), np.float32))
        return self.node("Conv", [x, ones], kernel_shape=[1, 1], strides=[step, step], group=channels)

    def norm_partial(self, x: str, mask: str, groups: int, channels: int) -> tuple[str, str, str]:
        """Mean and sum of squared distances, (batch, groups) each, and count, (batch, 1); in two passes.

        The first sums rows, then their sums: a channel of 30 everywhere, summed at once, is off by 1e-5 of itself.
        """
        per_group = channels // groups
        rows = self.node("ReduceSum", [self.multiply(x, mask), self.ints(-1)], keepdims=0)
        x, mask = (self.node("Reshape", [v, self.ints(0, c, -1)]) for v, c in ((x, channels), (mask, 1)))
        count = self.node("ReduceSum", [mask, self.ints(2)], keepdims=0)
        count = self.node("Max", [self.node("Mul", [count, self.number(per_group)]), self.number(1.0)])
        mean = self.node("Div", [self._by_group(rows, groups), count])
        spread = self.node("Expand", [self.node("Unsqueeze", [mean, self.ints(2)]), self.ints(1, 1, per_group)])
        centred = self.node("Sub", [x, self.node("Reshape", [spread, self.ints(0, channels, 1)])])
        centred = self.multiply(centred, mask)
        squares = self.node("ReduceSum", [self.multiply(centred, centred), self.ints(2)], keepdims=0)
        return mean, self._by_group(squares, groups), count

    def _by_group(self, x: str, groups: int) -> str:
        return self.node("ReduceSum", [self.node("Reshape", [x, self.ints(0, groups, -1)]), self.ints(2)], keepdims=0)

    def run(self, op: Op, args: Sequence[str]) -> str:
        x, attrs = args[0], op.attrs
        match op.kind:
            case "conv" | "upsample_conv":
                inputs = [x, self.weight(attrs["weight"])]
                if attrs["bias"] is not None:
                    inputs.append(self.weight(attrs["bias"]))
                if op.kind == "upsample_conv":
                    wide = self.node("Conv", inputs, kernel_shape=[2, 2])
                    return self.node("DepthToSpace", [wide], blocksize=2, mode="CRD")
                return self.node(
                    "Conv", inputs, kernel_shape=[attrs["kernel"]] * 2, strides=[attrs["stride"]] * 2,
                    group=attrs["groups"],
                )  # fmt: skip
            case "upsample":
                return self.upsample(x, attrs["factor"])
            case "depth_to_space":
                return self.node("DepthToSpace", [x], blocksize=attrs["factor"], mode="CRD")
            case "space_to_depth":
                return self._space_to_depth(op, x)
            case "linear":
                weight = self.node("Transpose", [self.weight(attrs["weight"])], perm=[1, 0])
                product = self.node("MatMul", [x, weight])
                return product if attrs["bias"] is None else self.node("Add", [product, self.weight(attrs["bias"])])
            case "add" | "sub" | "mul" | "div":
                if len(args) > 1:
                    other = args[1]
                else:
                    other = self.weight(attrs["constant"]) if "constant" in attrs else self.number(attrs["number"])
                return self.node(op.kind.capitalize(), [x, other])
            case "silu":
                return self.node("Mul", [x, self.node("Sigmoid", [x])])
            case "relu" | "tanh" | "exp" | "sigmoid" | "sqrt":
                return self.node(op.kind.capitalize(), [x])
            case "rsqrt":
                return self.node("Reciprocal", [self.node("Sqrt", [x])])
            case "clamp":
                bounds = ["" if attrs[b] is None else self.number(attrs[b]) for b in ("low", "high")]
                return self.node("Clip", [x, *bounds])
            case "mean" | "l2norm":
                kind = "ReduceMean" if op.kind == "mean" else "ReduceL2"
                return self.node(kind, [x, self.ints(*attrs["axes"])], keepdims=int(attrs["keep"]))
            case "concat":
                return self.node("Concat", args, axis=attrs["axis"])
            case "slice":
                bounds = [self.ints(attrs[k]) for k in ("start", "stop", "axis")]
                return self.node("Slice", [x, *bounds])
            case "repeat":
                size = op.layout[attrs["axis"]].size
                return self.node("Gather", [x, self.ints(*np.arange(size) // attrs["repeats"])], axis=attrs["axis"])
            case "extend":
                pads, axes = self.ints(0, attrs["count"]), self.ints(attrs["axis"])
                return self.node("Pad", [x, pads, self.number(attrs["fill"]), axes])
            case "transpose":
                return self.node("Transpose", [x], perm=list(attrs["order"]))
            case "cell_sum" | "apply":
                return self.node("MatMul", args)
        raise AssertionError(f"no ONNX operation for {op.kind}")

    def _space_to_depth(self, op: Op, x: str) -> str:
        """pixel_unshuffle keeps channels outermost (c, dy, dx); ONNX's SpaceToDepth is (dy, dx, c), so: regroup."""
        factor = op.attrs["factor"]
        channels = op.layout[1].size // factor**2
        deep = self.node("SpaceToDepth", [x], blocksize=factor)
        order = [
            (dy * factor + dx) * channels + c for c in range(channels) for dy in range(factor) for dx in range(factor)
        ]
        return self.node("Gather", [deep, self.ints(*order)], axis=1)
