"""An AutoencoderKL's encoder that starts as the best linear one: principal components of squares of 8 x 8 px.

    z = W x + b,   W's rows: the first eigenvectors of the squares' covariance, scaled so that z_c has unit deviation

An encoder of four levels can compute this to about a percent, because without its residual branches nothing in it is
nonlinear but the last norm and SiLU, and these can be passed:

    first stride    2 x 2 px of 3 colours -> 12 channels, each a copy of one value
    second stride   -> 4 L channels: what each row of W makes of each quarter of its square
    third stride    -> L channels: the sum over the four quarters
    norm            every group holds x, -x and constants K, -K: its mean is 0, its deviation about K sqrt(2 / channels)
    SiLU            silu(x) - silu(-x) = x

So latents mean something before training starts, encoder and decoder need not find each other, and a denoiser can be
trained while the decoder still is. The residual branches are there, with last layers of zero: training may use them.

Shapes   pixels (n, 3, height, width) in [-1, 1]; weight (L, 3, 8, 8); bias (L,).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from widefield.errors import BadRequest

CONSTANT = 30.0  # K: large beside latents, so that a group's deviation hardly depends on them


@dataclass(frozen=True, slots=True)
class Components:
    """W and b of the head of this file."""

    weight: Tensor
    bias: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        return F.conv2d(pixels, self.weight, self.bias, stride=8)


def principal_components(pixels: Tensor, count: int) -> Components:
    """The first `count` of the squares of 8 x 8 px in pixels (n, 3, height, width)."""
    squares = F.unfold(pixels.double(), 8, stride=8).transpose(1, 2).flatten(0, 1)
    mean = squares.mean(0)
    variances, vectors = torch.linalg.eigh((squares - mean).T @ (squares - mean) / len(squares))
    basis = (vectors / variances.clamp_min(1e-12).sqrt()).T.flip(0)[:count]
    basis = basis * basis.sum(1, keepdim=True).sign()  # eigenvectors have no sign of their own
    return Components(basis.reshape(count, 3, 8, 8).float(), -(basis @ mean).float())


@torch.no_grad()
def make_linear(encoder: Any, components: Components) -> None:
    """Set the weights of an Encoder of diffusers (one layer a block, stride 8) so that it computes the components."""
    widths = [block.resnets[0].conv2.out_channels for block in encoder.down_blocks]
    latents = len(components.weight)
    groups = encoder.conv_norm_out.num_groups
    pairs = (widths[3] // groups // 2 - 1) * groups  # that the last norm can pass
    if widths[0] < 12 or widths[1] < max(12, 4 * latents) or pairs < latents or widths[2] == widths[3]:
        wanted = f"[12, {max(12, 4 * latents)}, ...] at least, the last two not equal"
        raise BadRequest(f"found channels {widths} in {groups} groups; {latents} latents want {wanted}; widen them")
    silence(encoder)
    _first_strides(encoder, components.weight)
    shortcut = encoder.down_blocks[3].resnets[0].conv_shortcut
    middle = encoder.mid_block
    others = [resnet.norm1 for resnet in middle.resnets]
    others += [attention.group_norm for attention in middle.attentions if attention is not None]
    pass_norm(shortcut, encoder.conv_norm_out, encoder.conv_out, components.bias, others)


def silence(coder: Any) -> None:
    """Zero whatever ends a residual branch of an encoder or a decoder, and the straight path, which is then set.

    Shortcuts hand each channel to the channel of its number.
    """
    levels = coder.down_blocks if hasattr(coder, "down_blocks") else coder.up_blocks
    blocks = [resnet for level in (*levels, coder.mid_block) for resnet in level.resnets]
    scalers = [getattr(level, "downsamplers", None) or getattr(level, "upsamplers", None) for level in levels]
    ends = [coder.conv_in, coder.conv_out, *(scaler[0].conv for scaler in scalers if scaler)]
    ends += [resnet.conv2 for resnet in blocks] + [r.conv_shortcut for r in blocks if r.conv_shortcut]
    ends += [attention.to_out[0] for attention in coder.mid_block.attentions if attention is not None]
    for layer in ends:
        layer.weight.zero_()
        layer.bias.zero_()
    for resnet in blocks:
        if resnet.conv_shortcut:
            for k in range(min(resnet.conv_shortcut.in_channels, resnet.conv_shortcut.out_channels)):
                resnet.conv_shortcut.weight[k, k] = 1


def _first_strides(encoder: Any, weight: Tensor) -> None:
    """Up to the third stride: squares to components, a factor of two at a time. Rows y and columns x of 2 x 2."""
    strides = [block.downsamplers[0].conv.weight for block in encoder.down_blocks[:3]]
    for colour in range(3):
        encoder.conv_in.weight[colour, colour, 1, 1] = 1
        for y in range(2):
            for x in range(2):
                strides[0][6 * y + 3 * x + colour, colour, y, x] = 1
    for c, row in enumerate(weight):
        for quarter in range(4):
            top, left = divmod(quarter, 2)
            part = row[:, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4]  # (3, 4, 4)
            # (colour, y, fine y, x, fine x) -> (fine y, fine x, colour), then y, x
            taps = part.reshape(3, 2, 2, 2, 2).permute(2, 4, 0, 1, 3).reshape(12, 2, 2)
            strides[1][4 * c + quarter, :12, :2, :2] = taps
            strides[2][c, 4 * c + quarter, top, left] = 1


def pass_norm(shortcut: Any, norm: Any, last: Any, bias: Tensor, others: Iterable[Any] = ()) -> None:
    """Let channel c of `shortcut`'s input, plus bias[c], through norm, SiLU and convolution `last` as it is.

    Every group of the norm gets the constants and pairs x, -x; SiLU of a pair, subtracted, is x again. The norm then
    takes the constants away: what comes after would be driven by them at every step of a training. `others` are norms
    of residual branches on the way, which are to see what `last` sees.
    """
    groups, size = norm.num_groups, norm.num_channels // norm.num_groups
    shortcut.weight.zero_()
    for group in range(groups):
        for k, sign in enumerate((1, -1)):
            shortcut.bias[group * size + k] = sign * CONSTANT
    for c in range(len(bias)):
        group, place = c % groups, 2 + 2 * (c // groups)
        for k, sign in enumerate((1, -1)):
            channel = group * size + place + k
            shortcut.weight[channel, c] = sign
            shortcut.bias[channel] = sign * bias[c]
            last.weight[c, channel, 1, 1] = sign
    for each in (norm, *others):
        each.weight.fill_(CONSTANT * (2 / size) ** 0.5)
        each.weight.view(groups, size)[:, :2] = 0
        each.bias.zero_()
