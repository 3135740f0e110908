"""K = V attention against torch's, and against diffusers' own mid-block attention once the query has absorbed Wk."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention as DiffusersAttention

from widefield_kernels.attention import attend_reference


@pytest.mark.parametrize(
    ("queries", "tokens", "width", "rows"), [(37, 53, 16, 8), (100, 1, 24, 1024), (5, 200, 512, 2)]
)
def test_blocks_equal_torch(queries, tokens, width, rows):
    rng = np.random.default_rng(0)
    q, x = rng.standard_normal((queries, width)), rng.standard_normal((tokens, width))
    truth = torch.nn.functional.scaled_dot_product_attention(
        torch.from_numpy(q)[None], torch.from_numpy(x)[None], torch.from_numpy(x)[None], scale=1.0
    )[0].numpy()
    np.testing.assert_allclose(attend_reference(q, x, rows=rows), truth, atol=1e-12)
    honest = np.abs(attend_reference(q.astype(np.float32), x.astype(np.float32), rows=10**6) - truth).max()
    blocked = np.abs(attend_reference(q.astype(np.float32), x.astype(np.float32), rows=rows) - truth).max()
    assert blocked <= 2 * honest + np.finfo(np.float32).eps


def test_absorbed_query_equals_the_mid_block_attention_of_diffusers():
    torch.manual_seed(0)
    module = DiffusersAttention(32, heads=1, dim_head=32, bias=True).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0)
        x = torch.randn(1, 57, 32)
        truth = module(x)[0].double().numpy()
        wq, bq = module.to_q.weight.double(), module.to_q.bias.double()
        wk, wv, bv = module.to_k.weight.double(), module.to_v.weight.double(), module.to_v.bias.double()
        wo, bo = module.to_out[0].weight.double(), module.to_out[0].bias.double()
    tokens = x[0].double()
    query = (tokens @ wq.T + bq) @ wk / np.sqrt(32)
    attended = torch.from_numpy(attend_reference(query.numpy(), tokens.numpy()))
    np.testing.assert_allclose(((attended @ wv.T + bv) @ wo.T + bo).numpy(), truth, atol=1e-5)
