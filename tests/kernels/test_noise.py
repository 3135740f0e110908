"""Noise: published answers, the same bits in NumPy and Triton, a function of where it is, and normal."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

import widefield_kernels
from widefield_kernels.jit.noise import normal, variants
from widefield_kernels.noise import normal_from_bits_reference, normal_reference, philox_reference

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
KNOWN = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@triton.jit
def philox_kernel(counters_ptr, out_ptr, seed: tl.uint64, N: tl.constexpr):
    k = tl.arange(0, N)
    c0, c1 = tl.load(counters_ptr + k), tl.load(counters_ptr + N + k)
    c2, c3 = tl.load(counters_ptr + 2 * N + k), tl.load(counters_ptr + 3 * N + k)
    r0, r1, r2, r3 = tl.philox(seed, c0, c1, c2, c3)
    tl.store(out_ptr + k, r0)
    tl.store(out_ptr + N + k, r1)
    tl.store(out_ptr + 2 * N + k, r2)
    tl.store(out_ptr + 3 * N + k, r3)


def philox_of_triton(counters: np.ndarray, seed: int, device: str) -> np.ndarray:
    given_words = torch.from_numpy(counters.view(np.int32)).to(device)
    out = torch.empty_like(given_words)
    philox_kernel[(1,)](given_words, out, seed, N=counters.shape[1])
    return out.cpu().numpy().view(np.uint32)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, answer, device):
    low, high = words(key)
    counters = np.array(words(counter), np.uint32)[:, None]
    ours = philox_reference(tuple(counters), low | high << 32)
    assert [int(word[0]) for word in ours] == words(answer)
    assert philox_of_triton(counters, low | high << 32, device)[:, 0].tolist() == words(answer)


def test_philox_agrees_with_tritons_on_any_counter(device):
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (4, 256), dtype=np.uint32)
    for seed in (0, 1, 2**32 - 1, 2**63, 2**64 - 1):
        ours = np.stack(philox_reference(tuple(counters), seed))
        np.testing.assert_array_equal(ours, philox_of_triton(counters, seed, device))


def test_counters_that_broadcast_give_what_full_ones_do():
    x, y = np.arange(7, dtype=np.uint32)[None], np.arange(5, dtype=np.uint32)[:, None] + np.uint32(9)
    channel, last = np.asarray(3, np.uint32), np.asarray(5 << 16 | 2, np.uint32)
    full = [np.ascontiguousarray(part) for part in np.broadcast_arrays(x, y, channel, last)]
    for some, whole in zip(philox_reference((x, y, channel, last), 77), philox_reference(tuple(full), 77), strict=True):
        np.testing.assert_array_equal(some, whole)


REGIONS = (
    (7, 1, 2, 3, (5, 3, 42, 134)),
    (2**64 - 1, 2**16 - 1, 2**16 - 1, 2, (2**30 - 39, 2**30 - 78, 2**30 - 1, 2**30 - 1)),
    (1, 0, 0, 1, (0, 0, 1, 1)),
    (12345678901234, 3, 9, 5, (524287, 65533, 524288, 65538)),
)


@pytest.mark.parametrize(("seed", "level", "step", "channels", "region"), REGIONS)
def test_kernel_and_formula_agree_to_the_last_bit(seed, level, step, channels, region, device):
    y0, x0, y1, x1 = region
    canvas = torch.full((channels, y1 - y0 + 2, x1 - x0 + 5), 9.0, device=device)
    view = canvas[:, 1:-1, 2:-3]
    assert normal(seed, level, step, region, view) is view
    want = normal_reference(seed, level, step, channels, region)
    np.testing.assert_array_equal(view.cpu().numpy().view(np.uint32), want.view(np.uint32))
    view.fill_(9.0)
    assert (canvas == 9.0).all(), "written outside the region"


def truth_of(bits: np.ndarray) -> np.ndarray:
    """The inverse of the normal distribution function in float64, from the tail that is nearer."""
    signed = bits.view(np.int32).astype(np.int64)
    steps = np.where(signed < 0, signed + 2**31, 2**31 - 1 - signed)
    return -np.where(signed < 0, -1, 1) * special.ndtri((steps + 0.5) / 2**32)


def test_normals_are_within_six_ten_millionths_of_the_inverse_distribution():
    rng = np.random.default_rng(1)
    split = 2**31 - int(2**31 * 2 * stats.norm.sf(2.77))
    for first in (2**31 - 2**17, 2**32 - 2**17, split - 2**17):  # both extremes, zero, and where the polynomials meet
        bits = (first + np.arange(2**18)) % 2**32
        bits = np.concatenate([bits.astype(np.uint32), rng.integers(0, 2**32, 2**18, dtype=np.uint32)])
        truth = truth_of(bits)
        assert (np.abs(normal_from_bits_reference(bits) - truth) <= 6e-7 * np.abs(truth)).all()


def test_normals_rise_with_the_word_and_stay_finite_at_both_ends():
    bits = (np.arange(-(2**31), 2**31, 2**13) % 2**32).astype(np.uint32)
    z = normal_from_bits_reference(bits)
    assert (np.diff(z) > 0).all()
    ends = normal_from_bits_reference(np.array([2**31, 2**31 - 1, 0, 2**32 - 1], np.uint32))
    assert ends[0] == -ends[1] and ends[1] == pytest.approx(6.338, abs=1e-3)
    assert 0 < ends[2] == -ends[3] < 1e-9


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_value_depends_on_where_it_is_and_not_on_who_asks(data):
    top, left = data.draw(st.sampled_from([0, 65_533, 524_200])), data.draw(st.sampled_from([0, 1, 65_530, 524_222]))
    whole = normal_reference(5, 2, 1, 3, (top, left, top + 37, left + 61))
    y0, x0 = data.draw(st.integers(0, 37)), data.draw(st.integers(0, 61))
    y1, x1 = data.draw(st.integers(y0, 37)), data.draw(st.integers(x0, 61))
    part = normal_reference(5, 2, 1, 3, (top + y0, left + x0, top + y1, left + x1))
    np.testing.assert_array_equal(part, whole[:, y0:y1, x0:x1])


def test_regions_of_many_blocks_equal_their_parts():
    wide = normal_reference(3, 0, 0, 1, (10, 6, 13, 6 + 150_001))
    tall = normal_reference(3, 0, 0, 1, (10, 6, 40_011, 9))
    np.testing.assert_array_equal(wide[:, :, :3], tall[:, :3])
    np.testing.assert_array_equal(
        wide[0, 1, 131_067:131_080], normal_reference(3, 0, 0, 1, (11, 131_073, 12, 131_086))[0, 0]
    )
    np.testing.assert_array_equal(tall[0, 32_760:32_775], normal_reference(3, 0, 0, 1, (32_770, 6, 32_785, 9))[0])


def test_no_two_places_share_their_noise():
    """Corners of what a 512K picture in pixels and 64 x 64 levels and steps reach; equal counters would repeat."""
    seen = set()
    corners = (0, 4, 65_532, 65_536, 524_284)
    for level in (0, 1, 63, 64):
        for step in (0, 1, 63, 64):
            for y in corners:
                for x in corners:
                    noise = normal_reference(0, level, step, 3, (y, x, y + 1, x + 4))
                    seen.update(values.tobytes() for values in noise)
    seen.update(normal_reference(seed, 0, 0, 1, (0, 0, 1, 4)).tobytes() for seed in (1, 2**32, 2**63))
    assert len(seen) == 4 * 4 * 25 * 3 + 3


def test_moments_distribution_and_tails_are_those_of_the_normal():
    z = normal_reference(2024, 1, 7, 4, (1000, 3, 2024, 1027)).astype(np.float64).ravel()
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs((z**2).mean() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert stats.kstest(z, "norm").pvalue > 0.01
    for edge in (2.5, 3.0, 4.0, 4.5):
        for count in ((z > edge).sum(), (z < -edge).sum()):
            expected = n * stats.norm.sf(edge)
            assert abs(count - expected) < 4 * np.sqrt(expected) + 1


def test_neighbours_channels_steps_levels_and_seeds_are_independent():
    n, side = 512 * 512, 512
    base = normal_reference(1, 4, 9, 2, (64, 64, 64 + side + 4, 64 + side + 5)).astype(np.float64)
    here = base[0, :side, :side]
    box = (64, 64, 64 + side, 64 + side)
    others = [base[0, dy : dy + side, dx : dx + side] for dy in range(4) for dx in range(6) if dy or dx]
    others.append(base[1, :side, :side])
    others += [
        normal_reference(s, lv, st_, 1, box)[0]
        for s, lv, st_ in ((1, 4, 10), (1, 5, 9), (2, 4, 9), (1 << 32 | 1, 4, 9))
    ]
    assert not np.array_equal(here, others[-1])
    for other in others:
        assert abs((here * other).mean()) < 5 / np.sqrt(n)  # 5 deviations: 28 comparisons, twice
        assert abs(((here**2 - 1) * (other**2 - 1)).mean()) < 5 * 2 / np.sqrt(n)


def test_memory_beside_the_result_does_not_grow_with_the_region():
    tracemalloc.start()
    try:
        out = np.empty((4, 700, 1100), np.float32)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        normal_reference(1, 0, 0, 4, (0, 0, 700, 1100), out)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 6 << 20
    np.testing.assert_array_equal(out[2:3, 650:], normal_reference(1, 0, 0, 3, (650, 0, 700, 1100))[2:3])


@pytest.mark.parametrize(
    ("seed", "level", "step"), [(-1, 0, 0), (2**64, 0, 0), (0, 2**16, 0), (0, 0, 2**16), (0, -1, 0)]
)
def test_what_the_counter_cannot_hold_is_refused(seed, level, step):
    with pytest.raises(ValueError, match="the seed has 64 bits"):
        normal_reference(seed, level, step, 1, (0, 0, 1, 1))
    with pytest.raises(ValueError, match="the seed has 64 bits"):
        normal(seed, level, step, (0, 0, 1, 1), torch.empty(1, 1, 1))


@pytest.mark.parametrize("region", [(-1, 0, 4, 4), (0, 5, 4, 4), (0, 0, 4, 2**30)])
def test_regions_outside_any_picture_are_refused(region):
    with pytest.raises(ValueError, match="the part inside the picture"):
        normal_reference(0, 0, 0, 1, region)


@pytest.mark.parametrize(
    "out", [torch.empty(2, 3, 4), torch.empty(2, 3, 5, dtype=torch.float16), torch.empty(2, 5, 3).transpose(1, 2)]
)
def test_the_launcher_refuses_another_shape_dtype_or_stride(out):
    with pytest.raises(ValueError, match="contiguous last axis"):
        normal(0, 0, 0, (0, 0, 3, 5), out)


def test_compiled_noise_fuses_no_multiplication_with_an_addition(compiling):
    """What bits depend on: a fused one rounds once where NumPy rounds twice. In a process without the interpreter."""
    script = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from widefield_kernels.jit.noise import variants
for v in variants(90):
    signature = {**v.signature, **dict.fromkeys(v.constants, "constexpr")}
    source = ASTSource(v.function, signature, dict(v.constants))
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": v.num_warps, **v.options}).asm["ptx"]
    print(ptx.count("fma."), ptx.count("sqrt.rn.f32") > 0, ptx.count("mul.f32") + ptx.count("mul.rn.f32") > 0)
"""
    rooms = str(Path(widefield_kernels.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script], env=compiling | {"PYTHONPATH": rooms}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "True", "True"] * len(variants(90))
