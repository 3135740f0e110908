"""The attention formula: against torch's, in pages and in any order, and against diffusers' own mid-block module."""

from __future__ import annotations

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention as DiffusersAttention
from hypothesis import given, settings
from hypothesis import strategies as st

from widefield_kernels.attention import (
    State,
    attend_reference,
    attention_reference,
    finish_reference,
    merge_reference,
    page_reference,
)
from widefield_kernels.jit.attention import attention


def uneven(rng, *shape):
    """Every other row ten times larger: scores of very unlike size, and a maximum that keeps moving."""
    x = rng.standard_normal(shape)
    x[..., ::2, :] *= 10.0
    return x


def truth_of(q, k, v, scale):
    q, k, v = (torch.from_numpy(np.array(x, np.float64)) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).numpy()


def in_pages(q, k, v, scale, cuts, order=None, constants=None):
    """The keys cut at `cuts`, page after page; order is of pages."""
    bounds = [0, *cuts, k.shape[-2]]
    pages = list(itertools.pairwise(bounds))
    state = State.empty(q.shape[:-1], v.shape[-1], q.dtype)
    for i in order if order is not None else range(len(pages)):
        start, end = pages[i]
        constant = 0.0 if constants is None else constants[i]
        part = k[..., start:end, :], v[..., start:end, :]
        page_reference(state, q, *part, scale=scale, constant=constant, rows=16, keys=24)
    return finish_reference(state)


@pytest.mark.parametrize(
    ("queries", "tokens", "width", "rows"), [(37, 53, 16, 8), (100, 1, 24, 1024), (5, 200, 512, 2)]
)
def test_blocks_equal_torch(queries, tokens, width, rows):
    rng = np.random.default_rng(0)
    q, x = rng.standard_normal((queries, width)), uneven(rng, tokens, width)
    truth = truth_of(q[None], x[None], x[None], 1.0)[0]
    np.testing.assert_allclose(attend_reference(q, x, rows=rows), truth, atol=1e-12)
    honest = np.abs(attend_reference(q.astype(np.float32), x.astype(np.float32), rows=10**6) - truth).max()
    blocked = np.abs(attend_reference(q.astype(np.float32), x.astype(np.float32), rows=rows) - truth).max()
    assert blocked <= 2 * honest + np.finfo(np.float32).eps


def test_leading_axes_values_of_another_width_and_unlike_strides():
    rng = np.random.default_rng(1)
    q = rng.standard_normal((2, 37, 3, 40)).swapaxes(1, 2)
    k, v = uneven(rng, 2, 1, 53, 40), rng.standard_normal((2, 3, 24, 53)).swapaxes(2, 3)
    out = attention_reference(q, k, v, scale=0.3, rows=11, keys=7)
    np.testing.assert_allclose(out, truth_of(q, np.broadcast_to(k, (2, 3, 53, 40)), v, 0.3), atol=1e-12)


@pytest.mark.parametrize("cuts", [[], [29], [3, 9, 10, 24, 40, 51]], ids=["1 page", "2 pages", "7 pages"])
def test_pages_in_any_order_equal_the_whole(cuts):
    rng = np.random.default_rng(2)
    q, k, v = rng.standard_normal((37, 16)), uneven(rng, 53, 16), rng.standard_normal((53, 24))
    truth = truth_of(q[None], k[None], v[None], 0.25)[0]
    single = [x.astype(np.float32) for x in (q, k, v)]
    honest = np.abs(attention_reference(*single, scale=0.25) - truth).max()
    for _ in range(4):
        order = rng.permutation(len(cuts) + 1)
        np.testing.assert_allclose(in_pages(q, k, v, 0.25, cuts, order), truth, atol=1e-12)
        assert np.abs(in_pages(*single, 0.25, cuts, order) - truth).max() <= 2 * honest + np.finfo(np.float32).eps


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_pages_in_any_order(data):
    queries, tokens, width = (data.draw(st.integers(1, high)) for high in (40, 60, 20))
    cuts = sorted(data.draw(st.lists(st.integers(0, tokens), max_size=7)))  # equal cuts: empty pages
    order = data.draw(st.permutations(range(len(cuts) + 1)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    size = 10.0 ** data.draw(st.floats(-2, 3))
    q, k, v = size * rng.standard_normal((queries, width)), uneven(rng, tokens, width), uneven(rng, tokens, width)
    truth = truth_of(q[None], k[None], v[None], 0.5)[0]
    np.testing.assert_allclose(in_pages(q, k, v, 0.5, cuts, order), truth, rtol=1e-9, atol=1e-9)


def test_a_constant_stands_for_repeated_keys():
    rng = np.random.default_rng(3)
    q, k, v = rng.standard_normal((37, 16)), uneven(rng, 53, 16), rng.standard_normal((53, 16))
    times = [1] * 20 + [7] * 33
    truth = truth_of(q[None], np.repeat(k, times, axis=0)[None], np.repeat(v, times, axis=0)[None], 0.25)[0]
    found = in_pages(q, k, v, 0.25, [20], constants=[0.0, math.log(7)])
    np.testing.assert_allclose(found, truth, atol=1e-12)


def test_pages_without_keys_or_weight_change_nothing():
    rng = np.random.default_rng(4)
    q, k = rng.standard_normal((5, 16), np.float32), rng.standard_normal((9, 16), np.float32)
    state = State.empty((5,), 16)
    page_reference(state, q, k[:0], scale=1.0)
    page_reference(state, q, k, scale=1.0, constant=-math.inf)
    assert np.isneginf(state.m).all() and not state.l.any() and not finish_reference(state).any()
    page_reference(state, q, k, scale=1.0)
    before = state.m.copy(), state.l.copy(), state.o.copy()
    page_reference(state, q, k[:0], scale=1.0, constant=3.0)
    page_reference(state, q, 2 * k, scale=1.0, constant=-math.inf)
    for one, other in zip(before, (state.m, state.l, state.o), strict=True):
        np.testing.assert_array_equal(one, other)


def test_states_of_unlike_keys_merge():
    rng = np.random.default_rng(5)
    q, k, v = rng.standard_normal((37, 16)), uneven(rng, 53, 16), rng.standard_normal((53, 24))
    parts = [State.empty((37,), 24, np.float64) for _ in range(3)]
    for part, keys in zip(parts, (slice(0, 30), slice(30, 53), slice(0, 0)), strict=True):
        page_reference(part, q, k[keys], v[keys], scale=0.25)
    truth = truth_of(q[None], k[None], v[None], 0.25)[0]
    for a, b, c in itertools.permutations(parts):
        np.testing.assert_allclose(finish_reference(merge_reference(merge_reference(a, b), c)), truth, atol=1e-12)
    scores = 0.25 * q @ k.T
    merged = merge_reference(parts[0], parts[1])
    np.testing.assert_allclose((merged.m + np.log2(merged.l)) * math.log(2), np.logaddexp.reduce(scores, axis=1))


def test_half_precision_is_rounded_once():
    rng = np.random.default_rng(6)
    q, k = (uneven(rng, n, 16).astype(np.float16) for n in (37, 53))
    once = attention_reference(q.astype(np.float32), k.astype(np.float32), scale=0.25).astype(np.float16)
    np.testing.assert_array_equal(attention_reference(q, k, scale=0.25), once)


def test_memory_is_that_of_a_block():
    q, k = np.ones((3000, 16), np.float32), np.ones((6000, 16), np.float32)
    tracemalloc.start()
    try:
        attention_reference(q, k, scale=1.0, rows=64, keys=128)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * q.nbytes + 16 * 64 * 128  # all scores would be 72 MB


def absorbed(module, tokens, attend):
    """The module's result where keys and values are the tokens: `attend` is given (query, tokens)."""
    wq, bq, wk, wv, bv, wo, bo = (
        p.detach().numpy()
        for layer in (module.to_q, module.to_k, module.to_v, module.to_out[0])
        for p in ((layer.weight,) if layer is module.to_k else (layer.weight, layer.bias))
    )
    attended = attend((tokens @ wq.T + bq) @ wk * np.float32(module.scale), tokens)
    return (attended @ wv.T + bv) @ wo.T + bo


def by_kernel(device):
    """attend_reference's job, done by the kernel."""

    def attend(q, x):
        q, x = (torch.from_numpy(np.ascontiguousarray(a)).to(device)[None, None] for a in (q, x))
        return attention(q, x, scale=1.0)[0, 0].cpu().numpy()

    return attend


@pytest.mark.parametrize(("width", "kernel"), [(64, False), (512, False), (64, True), (512, True)])
def test_absorbed_query_equals_the_mid_block_attention_of_diffusers(width, kernel, device):
    torch.manual_seed(0)
    module = DiffusersAttention(
        width, heads=1, dim_head=width, norm_num_groups=32, eps=1e-6, bias=True, residual_connection=True,
        upcast_softmax=True, _from_deprecated_attn_block=True,
    ).eval()  # fmt: skip
    with torch.no_grad():
        x = torch.randn(1, width, 5, 7)
        truth = module(x)
        tokens = module.group_norm(x).flatten(2)[0].T.numpy()
        found = absorbed(module, tokens, by_kernel(device) if kernel else attend_reference)
    np.testing.assert_allclose(found.T.reshape(x.shape) + x.numpy(), truth.numpy(), atol=1e-5, rtol=0)
