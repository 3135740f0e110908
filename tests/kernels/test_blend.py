"""Blending: weights that add up to one, MultiDiffusion written out slowly, and the kernel against the formula."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import widefield_kernels
from widefield_kernels.blend import (
    BLEND,
    Row,
    blend_reference,
    gather_reference,
    is_aligned,
    launch_numbers,
    tent_reference,
)
from widefield_kernels.jit.blend import blend, variants
from widefield_kernels.noise import Draw, normal_reference
from widefield_kernels.windows import WindowGrid

FULL = Row(a=0.7, b=-0.3, c=0.5, d=1.5, keep_x=0.25, keep_m=0.875)
DRAW = Draw(2**63 + 5, 3, 40_000)


def normals(*shape: int, seed: int = 0) -> np.ndarray:
    """float32, with a mean and a spread that drift along every axis."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    for axis, length in enumerate(shape):
        values += np.linspace(-1, 2, length, dtype=np.float32).reshape(
            [-1 if k == axis else 1 for k in range(len(shape))]
        )
    return values


def windows_of(grid: WindowGrid, region: tuple[int, int, int, int], channels: int, seed: int = 0) -> np.ndarray:
    """Windows that are functions of where they lie, as a denoiser's are."""
    boxes = list(grid.windows(region))
    return np.stack([normals(channels, *grid.window, seed=seed + 7919 * box.y0 + box.x0) for box in boxes])


def size_of(region: tuple[int, int, int, int]) -> tuple[int, int]:
    return region[2] - region[0], region[3] - region[1]


@st.composite
def grids(draw):
    def axis():
        window = draw(st.integers(1, 24))
        return draw(st.integers(1, 70)), window, draw(st.integers(1, window)), draw(st.integers(0, 23))

    return WindowGrid(*zip(axis(), axis(), strict=True))


@st.composite
def regions(draw, grid):
    y0, x0 = draw(st.integers(0, grid.size[0] - 1)), draw(st.integers(0, grid.size[1] - 1))
    return y0, x0, draw(st.integers(y0 + 1, grid.size[0])), draw(st.integers(x0 + 1, grid.size[1]))


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 1000])
def test_a_tent_is_positive_the_same_from_both_ends_and_on_half_cells(n):
    weights = tent_reference(n)
    assert (weights > 0).all() and (weights == weights[::-1]).all()
    true = 1 - np.abs(np.arange(n) + 0.5 - n / 2) / (n / 2)
    np.testing.assert_allclose(weights / n, true, rtol=1e-6)


def test_where_two_windows_overlap_by_half_or_less_one_fades_into_the_other_evenly():
    grid = WindowGrid((1, 28), (1, 16), (1, 12))
    first, second = np.zeros((1, 1, 16), np.float32), np.ones((1, 1, 16), np.float32)
    steps = np.diff(gather_reference(grid, (0, 0, 1, 28), [first, second])[0, 0, 11:17])
    assert steps.tolist() == [0.125, 0.25, 0.25, 0.25, 0.125]


@settings(deadline=None)
@given(grids())
@example(WindowGrid((29, 101), (16, 25), (12, 25)))  # window - overlap + window + 1; a sliver
@example(WindowGrid((13, 7), (16, 16), (12, 12)))  # window - overlap + 1; a picture smaller than a window
@example(WindowGrid((80, 70), (24, 23), (1, 1)))  # 552 windows over a cell
@example(WindowGrid((5, 200), (5, 64), (1, 1), (2, 0)))
def test_weights_add_up_to_one_everywhere(grid):
    region = (0, 0, *grid.size)
    count = grid.shape[0] * grid.shape[1]
    one = np.ones((1, *grid.window), np.float32)
    assert np.abs(gather_reference(grid, region, [one] * count) - 1).max() <= 1e-6


def multidiffusion(picture_size, window, origins, values):
    """Bar-Tal's average with weights that fall evenly to the borders, cell by cell of every window, in float64."""
    height, width = picture_size
    value = np.zeros((values[0].shape[0], height, width))
    count = np.zeros((height, width))
    for (top, left), of_window in zip(origins, values, strict=True):
        for i, j in itertools.product(range(window[0]), range(window[1])):
            if top + i < height and left + j < width:
                down, across = (1 - abs(2 * (k + 0.5) / n - 1) for k, n in zip((i, j), window, strict=True))
                weight = down * across
                value[:, top + i, left + j] += weight * of_window[:, i, j]
                count[top + i, left + j] += weight
    return value / count


@pytest.mark.parametrize(
    ("grid", "down", "across"),
    [
        (WindowGrid((27, 31), (10, 12), (7, 5)), (0, 7, 14, 17), (0, 5, 10, 15, 19)),
        (WindowGrid((27, 31), (10, 12), (7, 5), (3, 2)), (0, 4, 11, 17), (0, 3, 8, 13, 18, 19)),
        (WindowGrid((8, 25), (10, 12), (10, 12)), (0,), (0, 12, 13)),
    ],
)
def test_agrees_with_a_slow_multidiffusion_loop(grid, down, across):
    region = (0, 0, *grid.size)
    origins = list(itertools.product(down, across))
    values = windows_of(grid, region, 2).astype(np.float64)
    truth = multidiffusion(grid.size, grid.window, origins, values)
    most = np.abs(values).max()
    assert np.abs(gather_reference(grid, region, values) - truth).max() <= 1e-14 * most
    single = gather_reference(grid, region, values.astype(np.float32))
    assert single.dtype == np.float32 and np.abs(single - truth).max() <= 2e-6 * most


def test_the_whole_row_follows_the_blend():
    grid, region = WindowGrid((27, 31), (10, 12), (7, 5), (3, 2)), (4, 3, 25, 30)
    windows = windows_of(grid, region, 3).astype(np.float64)
    x, history = normals(2, 3, *size_of(region), seed=1).astype(np.float64)
    m, n = gather_reference(grid, region, windows), normal_reference(*DRAW, 3, region)
    kept = np.empty_like(x)
    got = blend_reference(grid, region, windows, FULL, x=x, draw=DRAW, history=history, kept=kept)
    np.testing.assert_allclose(got, 0.7 * x - 0.3 * m + 0.5 * n + 1.5 * history, rtol=0, atol=1e-14)
    np.testing.assert_allclose(kept, 0.25 * x + 0.875 * m, rtol=0, atol=1e-14)


def test_one_window_is_the_plain_step_of_the_sampler():
    grid, region = WindowGrid((16, 24), (16, 24), (16, 24)), (0, 0, 16, 24)
    m, x, history = normals(3, 4, 16, 24)
    a, b, c, d = (np.float32(number) for number in (0.7, -0.3, 0.5, 1.5))
    plain = a * x + b * m + c * normal_reference(*DRAW, 4, region) + d * history
    kept = np.empty_like(x)
    got = blend_reference(grid, region, [m], FULL, x=x, draw=DRAW, history=history, kept=kept)
    np.testing.assert_array_equal(got, plain)
    np.testing.assert_array_equal(blend_reference(grid, region, [m]), m)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_region_is_the_part_of_the_whole(data):
    grid = data.draw(grids())
    whole, part = (0, 0, *grid.size), data.draw(regions(grid))
    rows, columns = slice(part[0], part[2]), slice(part[1], part[3])
    x = normals(2, *grid.size, seed=5)
    row = Row(0.5, 0.5, 2.0)
    all_of_it = blend_reference(grid, whole, windows_of(grid, whole, 2), row, x=x, draw=DRAW)
    mine = blend_reference(grid, part, windows_of(grid, part, 2), row, x=x[:, rows, columns], draw=DRAW)
    np.testing.assert_array_equal(mine, all_of_it[:, rows, columns])


def test_results_may_replace_what_they_are_made_of():
    grid, region = WindowGrid((20, 20), (12, 12), (8, 8)), (2, 3, 19, 20)
    windows = windows_of(grid, region, 2)
    x, history = normals(2, 2, *size_of(region), seed=1)
    kept = np.empty_like(x)
    want = blend_reference(grid, region, windows, FULL, x=x, draw=DRAW, history=history, kept=kept)
    got = blend_reference(grid, region, windows, FULL, x=x, draw=DRAW, history=history, kept=history, out=x)
    assert got is x
    np.testing.assert_array_equal(x, want)
    np.testing.assert_array_equal(history, kept)


def test_what_is_not_given_or_does_not_fit_is_refused():
    grid, region = WindowGrid((20, 20), (12, 12), (8, 8)), (0, 0, 20, 20)
    windows = windows_of(grid, region, 1)
    for row, missing in ((Row(a=1), "x"), (Row(c=1), "draw"), (Row(d=1), "history"), (Row(keep_m=1), "kept")):
        with pytest.raises(ValueError, match=f"needs {missing}, which was not given"):
            blend_reference(grid, region, windows, row)
    with pytest.raises(ValueError, match="wanted 4, each"):
        blend_reference(grid, region, windows[:-1])
    with pytest.raises(ValueError, match="wanted 4, each"):
        blend_reference(grid, region, windows[:, :, :11])


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
CASES = {
    "corners": (WindowGrid((100, 290), (32, 30), (24, 17), (12, 5)), (5, 7, 20, 140)),
    "aligned": (WindowGrid((64, 384), (32, 64), (16, 48), (8, 24)), (3, 128, 14, 384)),
    "far": (WindowGrid((65_536, 65_536), (32, 36), (24, 28)).phase(1), (65_530, 65_437, 65_536, 65_536)),
    "small": (WindowGrid((10, 9), (16, 12), (8, 12)), (0, 0, 10, 9)),
    "sliver": (WindowGrid((1, 41), (1, 10), (1, 10)), (0, 0, 1, 41)),
}


def run(case, device, dtype=torch.float32, model=None, row=FULL, channels=2):
    """(kernel's x', kernel's kept, and the formula's arguments) with planes and windows of unlike strides."""
    grid, region = CASES[case]
    windows = torch.from_numpy(windows_of(grid, region, channels)).to(model or dtype)
    x, history = torch.from_numpy(normals(2, channels, *size_of(region), seed=1)).to(dtype)
    kept, out = padded(torch.zeros_like(x), 5, device), padded(torch.zeros_like(x), 3, device)
    blend(
        grid, region, padded(windows, 2, device), out, row, x=padded(x, 1, device), draw=DRAW,
        history=padded(history, 4, device), kept=kept,
    )  # fmt: skip
    return out.cpu(), kept.cpu(), (grid, region, windows, x, history)


def padded(tensor, rows, device):
    """The same values, as a view of something with more rows and columns that hold NaN."""
    *outer, height, width = tensor.shape
    room = torch.full((*outer, height + rows, width + 16 * rows), torch.nan, dtype=tensor.dtype, device=device)
    room[..., 1 : height + 1, 8 * rows : 8 * rows + width] = tensor.to(device)
    return room[..., 1 : height + 1, 8 * rows : 8 * rows + width]


def formula(grid, region, windows, x, history, row=FULL):
    kept = np.zeros_like(x)
    return blend_reference(grid, region, windows, row, x=x, draw=DRAW, history=history, kept=kept), kept


@pytest.mark.parametrize("case", CASES)
def test_kernel_gives_the_same_bits_as_the_formula_in_float32(case, device):
    out, kept, (grid, region, *tensors) = run(case, device)
    want, want_kept = formula(grid, region, *(tensor.numpy() for tensor in tensors))
    np.testing.assert_array_equal(out.numpy(), want)
    np.testing.assert_array_equal(kept.numpy(), want_kept)


def test_columns_in_eights_are_told_from_others():
    def aligned(case: str, stride: int) -> bool:
        grid, region = CASES[case]
        return is_aligned(launch_numbers(grid, region, 2, BLEND, None), (stride, 800))

    assert aligned("aligned", 264) and not aligned("aligned", 260) and not aligned("corners", 264)


@pytest.mark.parametrize(("dtype", "model"), [("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "bf16")])
def test_kernel_errs_at_most_twice_as_much_as_the_formula(dtype, model, device):
    """The formula in the same dtype: from rounded inputs, in float32, rounded once."""
    out, kept, (grid, region, *tensors) = run("corners", device, DTYPES[dtype], DTYPES[model])
    truth = formula(grid, region, *(tensor.double().numpy() for tensor in tensors))
    honest = formula(grid, region, *(tensor.float().numpy() for tensor in tensors))
    for got, want, rounded in zip((out, kept), truth, honest, strict=True):
        rounded = torch.from_numpy(rounded).to(DTYPES[dtype]).double()
        error = (got.double() - torch.from_numpy(want)).abs().max()
        allowed = 2 * (rounded - torch.from_numpy(want)).abs().max() + torch.finfo(DTYPES[dtype]).eps
        assert error <= allowed


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_kernel_agrees_on_any_grid_and_region(device, data):
    grid = data.draw(grids().filter(lambda g: all(4 * s > w for s, w in zip(g.stride, g.window, strict=True))))
    region = data.draw(regions(grid))
    windows = windows_of(grid, region, 1)
    out = torch.full((1, *size_of(region)), 9.0, device=device)
    blend(grid, region, torch.from_numpy(windows).to(device), out)
    np.testing.assert_array_equal(out.cpu().numpy(), blend_reference(grid, region, windows))


def test_kernel_reads_windows_from_the_slots_of_a_pool(device):
    grid, region = CASES["small"][0], (0, 0, 10, 9)
    grid = WindowGrid((10, 20), grid.window, (8, 6))
    region = (1, 2, 9, 19)
    windows = windows_of(grid, region, 2)
    slots = np.random.default_rng(0).permutation(len(windows) + 3)[: len(windows)]
    pool = np.full((len(windows) + 3, *windows.shape[1:]), np.nan, np.float32)
    pool[slots] = windows
    out = torch.empty(2, 8, 17, device=device)
    blend(grid, region, torch.from_numpy(pool).to(device), out, slots=torch.from_numpy(slots).int().to(device))
    np.testing.assert_array_equal(out.cpu().numpy(), blend_reference(grid, region, windows))


def test_kernel_may_write_over_what_it_reads_and_reads_nothing_of_coefficient_zero(device):
    grid, region = CASES["small"]
    windows = windows_of(grid, region, 2)
    x, history = normals(2, 2, *size_of(region), seed=1)
    want, kept = formula(grid, region, windows, x, history)
    on_device = [torch.from_numpy(array.copy()).to(device) for array in (windows, x, history)]
    blend(grid, region, *on_device[:2], FULL, x=on_device[1], draw=DRAW, history=on_device[2], kept=on_device[2])
    np.testing.assert_array_equal(on_device[1].cpu().numpy(), want)
    np.testing.assert_array_equal(on_device[2].cpu().numpy(), kept)
    bad = torch.full((2, *size_of(region)), torch.nan, device=device)
    out = torch.empty_like(bad)
    blend(grid, region, on_device[0], out, BLEND, x=bad, draw=DRAW, history=bad, kept=bad)
    np.testing.assert_array_equal(out.cpu().numpy(), blend_reference(grid, region, windows))
    assert bad.isnan().all()


def test_offsets_beyond_two_to_the_31(device, tmp_path):
    """Planes and slots that lie 2^31 elements apart, in a file of which only what is written takes room."""
    elements = 2**31 + 4096
    if device == "cpu":
        far = torch.from_numpy(np.memmap(tmp_path / "sparse", np.float16, "w+", shape=(elements,)))
    else:
        far = torch.empty(elements, dtype=torch.float16, device=device)
    grid, region = WindowGrid((9, 40), (9, 20), (9, 10)), (0, 0, 9, 40)
    values = windows_of(grid, region, 3).astype(np.float16)
    slots_apart = far.as_strided((3, 3, 9, 20), (2**30, 180, 20, 1), 128)
    channels_apart = far.as_strided((3, 3, 9, 20), (180, 2**30, 20, 1), 1024)
    rows_apart = far.as_strided((3, 9, 40), (2**10, 2**28, 1))
    planes_apart = far.as_strided((3, 9, 40), (2**30, 40, 1), 3072)
    for windows, out in ((slots_apart, rows_apart), (channels_apart, planes_apart)):
        windows.copy_(torch.from_numpy(values))
        blend(grid, region, windows, out)
        np.testing.assert_array_equal(out.cpu().numpy(), blend_reference(grid, region, values))


def test_the_launcher_refuses_what_it_does_not_support():
    grid, region = CASES["small"]
    windows, out = torch.zeros(1, 2, 16, 12), torch.zeros(2, 10, 9)
    for wrong in (windows[:, :, :15], windows.transpose(2, 3), windows.double(), windows[0]):
        with pytest.raises(ValueError, match="windows are"):
            blend(grid, region, wrong, out)
    for wrong in (out[:1], out.double(), torch.zeros(2, 9, 10).transpose(1, 2)):
        with pytest.raises(ValueError, match="out is"):
            blend(grid, region, windows, wrong)
    with pytest.raises(ValueError, match="x is"):
        blend(grid, region, windows, out, Row(a=1), x=out.half())
    with pytest.raises(ValueError, match="2 windows; wanted the 1"):
        blend(grid, region, windows.repeat(2, 1, 1, 1), out)
    with pytest.raises(ValueError, match="slots are"):
        blend(grid, region, windows, out, slots=torch.zeros(1))
    with pytest.raises(ValueError, match="needs history"):
        blend(grid, region, windows, out, Row(d=1))
    with pytest.raises(ValueError, match="the seed has 64 bits"):
        blend(grid, region, windows, out, Row(c=1), draw=Draw(0, 0, 2**16))


def test_compiled_blending_fuses_nothing_and_reads_aligned_planes_16_bytes_at_a_time(compiling):
    script = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from widefield_kernels.jit.blend import variants
for v in variants(90)[:2]:
    names = v.function.arg_names
    signature = {**v.signature, **dict.fromkeys(v.constants, "constexpr")}
    promised = {(names.index(name),): [["tt.divisibility", 16]] for name in v.divisible}
    source = ASTSource(v.function, signature, dict(v.constants), promised)
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": v.num_warps, **v.options}).asm["ptx"]
    print(v.name, ptx.count("fma."), ptx.count("ld.global.v4.b32") >= 3 and ptx.count("st.global.v4.b32") >= 2)
"""
    rooms = str(Path(widefield_kernels.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script], env=compiling | {"PYTHONPATH": rooms}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["blend.bf16.aligned 0 True", "blend.bf16 0 False"]
    assert [v.name for v in variants(90)][:2] == ["blend.bf16.aligned", "blend.bf16"]
