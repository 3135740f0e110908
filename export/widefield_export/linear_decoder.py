"""An AutoencoderKL's decoder that starts as a good linear one: least squares, one enlargement after the other.

    y_1 = K_1 * up(z) + b_1,   y_2 = K_2 * up(y_1) + b_2,   y_3 = K_3 * up(y_2) + b_3
    K_k, b_k minimise  sum |y_k - t_k|^2  over pictures

up doubles by repeating, K are 3 x 3, and t are what is wanted at a quarter, half and full resolution: principal
components of squares of 4 x 4 px, the values of squares of 2 x 2 px, and pixels. Residual branches start as nothing,
and the last norm and SiLU are passed as in linear_encoder.py. Training then has only to add what is not linear.

Shapes   pixels (n, 3, height, width) in [-1, 1]; z (n, L, height / 8, width / 8).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from widefield.errors import BadRequest
from widefield_export.linear_encoder import Components, pass_norm, silence

FINE = 32  # components of 4 x 4 px
RIDGE = 1e-3  # of the mean square of all predictors: large weights would make training tremble


def least_squares(inputs: Tensor, targets: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """The 3 x 3 convolution, zero-padded, that takes inputs (n, c, h, w) nearest to targets (n, d, h, w)."""
    columns = F.unfold(inputs.double(), 3, padding=1).transpose(1, 2).flatten(0, 1)
    columns = torch.cat([columns, torch.ones_like(columns[:, :1])], 1)
    wanted = targets.double().flatten(2).transpose(1, 2).flatten(0, 1)
    gram = columns.T @ columns
    damping = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved = torch.linalg.solve(gram + damping, columns.T @ wanted)
    weight = solved[:-1].T.reshape(targets.shape[1], inputs.shape[1], 3, 3)
    return weight.to(inputs.dtype), solved[-1].to(inputs.dtype)


def square_components(pixels: Tensor, side: int, count: int) -> Tensor:
    """The first principal components of squares of side x side px, not scaled: (n, count, height / side, .)."""
    squares = F.unfold(pixels, side, stride=side)
    flat = squares.transpose(1, 2).flatten(0, 1).double()
    flat = flat - flat.mean(0)
    basis = torch.linalg.eigh(flat.T @ flat).eigenvectors.flip(1)[:, :count].to(pixels.dtype)
    values: Tensor = torch.einsum("bkl,kc->bcl", squares, basis)
    return values.reshape(len(pixels), count, pixels.shape[2] // side, pixels.shape[3] // side)


@torch.no_grad()
def make_linear_decoder(decoder: Any, components: Components, pixels: Tensor) -> Tensor:
    """Set the weights of a Decoder of diffusers (one layer a block, factor 8), fitted to `pixels`; gives its output."""
    widths = [block.resnets[-1].conv2.out_channels for block in decoder.up_blocks]
    latents = components(pixels)
    groups = decoder.conv_norm_out.num_groups
    needs = (max(FINE, latents.shape[1]), FINE, 12, 12)
    narrow = any(width < need for width, need in zip(widths, needs, strict=True)) or widths[3] < 4 * groups
    if narrow or groups < 3 or widths[2] == widths[3]:
        wanted = f"{list(needs)} at least, four to a group, the last two not equal, in 3 groups or more"
        raise BadRequest(f"found channels {widths} in {groups} groups; wanted {wanted}; widen them")
    silence(decoder)
    for k in range(latents.shape[1]):
        decoder.conv_in.weight[k, k, 1, 1] = 1
    targets = (square_components(pixels, 4, FINE), F.pixel_unshuffle(pixels, 2), pixels)
    values = latents
    for block, target in zip(decoder.up_blocks, targets, strict=False):
        enlarged = F.interpolate(values, scale_factor=2.0, mode="nearest")
        weight, bias = least_squares(enlarged, target)
        values = F.conv2d(enlarged, weight, bias, padding=1)
        conv = block.upsamplers[0].conv
        conv.weight[: weight.shape[0], : weight.shape[1]] = weight
        conv.bias[: len(bias)] = bias
    first, second = decoder.up_blocks[3].resnets
    pass_norm(first.conv_shortcut, decoder.conv_norm_out, decoder.conv_out, torch.zeros(3), [second.norm1])
    return values
