"""What is mended in Triton's interpreter, and what is refused: bfloat16 rounds, multiplies and widens as on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from widefield_kernels.jit.interpreter import interpreted, narrow, widen

pytestmark = pytest.mark.skipif(not interpreted(), reason="kernels run on a GPU here")


@triton.jit
def matmul_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    product = tl.dot(tl.load(a_ptr + i * N + j), tl.load(b_ptr + i * N + j))
    tl.store(out_ptr + i * N + j, product.to(out_ptr.dtype.element_ty))


@triton.jit
def double_kernel(x_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(x_ptr + i, tl.load(x_ptr + i) * 2.0)


@triton.jit
def cast_kernel(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


def test_narrowing_and_widening_are_torchs():
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32)
    bits[:6] = [0, 0x80000000, 0x7F800000, 0xFF800000, 0x3F808000, 0x3F818000]  # both zeros, infinities, two halves
    values = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        truth = torch.from_numpy(values.copy()).bfloat16()
    found = torch.from_numpy(narrow(values)).view(torch.bfloat16)
    assert torch.equal(torch.isnan(found), torch.isnan(truth))
    assert torch.equal(found[~torch.isnan(found)], truth[~torch.isnan(truth)])
    np.testing.assert_array_equal(widen(truth.view(torch.uint16).numpy()), truth.float().numpy())


def test_a_dot_multiplies_numbers_and_not_their_bits():
    a, b = torch.randn(2, 32, 32).bfloat16()
    out = torch.empty(32, 32)
    matmul_kernel[(1,)](a, b, out, N=32)
    torch.testing.assert_close(out, a.float() @ b.float())


@pytest.mark.parametrize("source", [torch.float32, torch.float16, torch.float64, torch.int32, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.float32, torch.float16, torch.float64, torch.bfloat16])
def test_casts_round_as_torchs_do(source, target):
    x = (torch.randn(64) * 100).to(source)
    out = torch.empty(64, dtype=target)
    cast_kernel[(1,)](x, out, N=64)
    assert torch.equal(out, x.to(target))


def test_arithmetic_on_bits_is_refused():
    with pytest.raises(triton.runtime.errors.InterpreterError, match=r"fmul on the bits of a bfloat16; wanted float32"):
        double_kernel[(1,)](torch.ones(8).bfloat16(), N=8)
