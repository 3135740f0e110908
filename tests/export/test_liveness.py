"""Activations that live together, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from widefield_export.liveness import live_nbytes


class Chain(nn.Module):
    """Two convolutions with a skip around the second: x8, then x8 and x8, then their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        b = a.flatten(2).unflatten(2, (6, 10))  # views cost nothing
        return self.second(b) + a


class Narrowing(nn.Module):
    """A wide value that is gone before the next wide one comes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.repeat(1, 10, 1, 1)
        narrow = wide.mean(1, keepdim=True)
        again = narrow.repeat(1, 20, 1, 1)
        return again.sum(1)


@pytest.mark.parametrize(
    ("module", "channels", "live"),
    [(Chain(), 3, 8 + 8 + 8), (Narrowing(), 3, 30 + 1)],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_largest_set_of_values_alive_together(module, channels, live, dynamic):
    x = torch.zeros(2, channels, 6, 10)
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=9)}} if dynamic else None
    exported = torch.export.export(module, (x,), dynamic_shapes=shapes)
    assert live_nbytes(exported, 2) == 4 * live * 60
