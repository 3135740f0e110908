"""Run a program with torch: the oracle that the written graphs are checked against, one operation a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from widefield_export.emit import Walk
from widefield_export.program import Layout, Op, Program
from widefield_export.segments import Segment


class TorchBackend:
    """`weights` and `parameters` (frozen sites) are tensors by name; extents are ints."""

    def __init__(self, program: Program, parameters: Mapping[str, Tensor]) -> None:
        self.weights = {name: torch.from_numpy(array) for name, array in program.weights.items()}
        self.parameters = parameters

    def extent(self, x: Tensor, axis: int, scale: int, margin: int) -> int:
        return (x.shape[axis] - margin) // scale

    def grown(self, cells: int, scale: int, margin: int) -> int:
        return cells * scale + margin

    def crop(self, x: Tensor, axes: Sequence[int], low: int, high: int) -> Tensor:
        for axis in axes:
            x = x.narrow(axis, low, x.shape[axis] - low - high)
        return x

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def upsample(self, x: Tensor, factor: int) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="nearest")

    def parameter(self, name: str, layout: Layout) -> Tensor:
        return self.parameters[name].reshape([axis.size for axis in layout])

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return x * scale + shift

    def every(self, x: Tensor, step: int) -> Tensor:
        return x[:, :, ::step, ::step]

    def thin(self, x: Tensor, step: int, channels: int) -> Tensor:
        return x[:, :, ::step, ::step]

    def norm_partial(self, x: Tensor, mask: Tensor, groups: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
        x, mask, batch = x.flatten(2), mask.flatten(2), x.shape[0]
        count = (mask.sum(2) * (channels // groups)).clamp(min=1)
        mean = (x * mask).sum(2).reshape(batch, groups, -1).sum(2) / count
        centred = (x - mean.repeat_interleave(channels // groups, 1)[:, :, None]) * mask
        return mean, centred.square().sum(2).reshape(batch, groups, -1).sum(2), count

    def taps(self, op: Op) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) of a convolution or a linear map."""
        bias = op.attrs["bias"]
        return self.weights[op.attrs["weight"]], None if bias is None else self.weights[bias]

    def run(self, op: Op, args: Sequence[Any]) -> Tensor:
        x: Tensor = args[0]
        attrs = op.attrs
        match op.kind:
            case "conv":
                return F.conv2d(x, *self.taps(op), attrs["stride"], groups=attrs["groups"])
            case "upsample_conv":
                return F.pixel_shuffle(F.conv2d(x, *self.taps(op)), 2)
            case "upsample":
                return self.upsample(x, attrs["factor"])
            case "depth_to_space":
                return F.pixel_shuffle(x, attrs["factor"])
            case "space_to_depth":
                return F.pixel_unshuffle(x, attrs["factor"])
            case "linear":
                return F.linear(x, *self.taps(op))
            case "add" | "sub" | "mul" | "div":
                other = args[1] if len(args) > 1 else attrs.get("number")
                other = self.weights[attrs["constant"]] if other is None else other
                return getattr(torch, op.kind)(x, other)  # type: ignore[no-any-return]
            case "silu":
                return F.silu(x)
            case "relu" | "tanh" | "rsqrt" | "exp" | "sigmoid" | "sqrt":
                return getattr(torch, op.kind)(x)  # type: ignore[no-any-return]
            case "clamp":
                return x.clamp(attrs["low"], attrs["high"])
            case "mean":
                return x.mean(attrs["axes"], keepdim=attrs["keep"])
            case "l2norm":
                norm: Tensor = torch.linalg.vector_norm(x, 2, attrs["axes"], keepdim=attrs["keep"])
                return norm
            case "concat":
                return torch.cat(list(args), attrs["axis"])
            case "slice":
                return x.narrow(attrs["axis"], attrs["start"], attrs["stop"] - attrs["start"])
            case "repeat":
                return x.repeat_interleave(attrs["repeats"], attrs["axis"])
            case "extend":
                shape = list(x.shape)
                shape[attrs["axis"]] = attrs["count"]
                return torch.cat([x, x.new_full(shape, attrs["fill"])], attrs["axis"])
            case "transpose":
                return x.permute(attrs["order"])
            case "cell_sum" | "apply":
                return torch.matmul(x, args[1])
        raise AssertionError(f"no torch operation for {op.kind}")


def run_segment(
    program: Program,
    segment: Segment,
    given: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    inside: Tensor | None,
) -> dict[str, Tensor]:
    """One segment over a batch of tiles: values (batch, ..., pixels with margins) in, the segment's outputs out."""
    walk = Walk(program, TorchBackend(program, parameters), given, inside)
    return walk.run(segment)
