"""What CuPy compiles for a GPU, compiled as C here: the same text gives the formulas' numbers."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from widefield.device import ops
from widefield.schedule import Step, guided, update

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler, cc")
SOURCE = """
#include <stdint.h>
#include <string.h>
static uint32_t __float_as_uint(float x) {{ uint32_t u; memcpy(&u, &x, 4); return u; }}
static float __uint_as_float(uint32_t u) {{ float x; memcpy(&x, &u, 4); return x; }}
void to_bf16(float x, uint16_t *out) {{ uint16_t y; {to_bf16}; *out = y; }}
void from_bf16(uint16_t x, float *out) {{ float y; {from_bf16}; *out = y; }}
void scale(float x, float factor, float *out) {{ float y; {scale}; *out = y; }}
void guide(float positive, float negative, float scale, float *out) {{ float m; {guide}; *out = m; }}
void step(float x, float m, float n, float h, float a, float b, float c, float history_x, float history_m,
          float *out) {{
    float y, k; {step}; out[0] = y; out[1] = k;
}}
"""
NUMBERS = (0.0, -0.0, 1.0, -1.25, 3.14159265, 1e-30, 65504.0, -70000.0, 3.3e38, np.inf, -np.inf, 1.00390625, 1.01171875)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The functions, on single numbers; results are read from where the last argument points."""
    folder = tmp_path_factory.mktemp("c")
    text = SOURCE.format(
        to_bf16=ops._TO_BF16, from_bf16=ops._FROM_BF16, scale=ops._SCALE, guide=ops._GUIDE, step=ops._STEP
    )
    (folder / "ops.c").write_text(text)
    target = folder / "ops.so"
    subprocess.run(
        ["cc", "-std=c11", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-o", target, folder / "ops.c"], check=True
    )
    return ctypes.CDLL(str(target))


def floats(*numbers: float) -> list[ctypes.c_float]:
    return [ctypes.c_float(number) for number in numbers]


@pytest.mark.parametrize("number", NUMBERS)
def test_bfloat16_is_rounded_to_nearest_even_and_back(library, number):
    torch = pytest.importorskip("torch")
    made, back = ctypes.c_uint16(), ctypes.c_float()
    library.to_bf16(*floats(number), ctypes.byref(made))
    library.from_bf16(made, ctypes.byref(back))
    wanted = torch.tensor(number, dtype=torch.float32).bfloat16()
    assert made.value == wanted.view(torch.int16).item() & 0xFFFF and back.value == wanted.float().item()


def test_no_number_stays_none_in_bfloat16(library):
    made, back = ctypes.c_uint16(), ctypes.c_float()
    library.to_bf16(*floats(np.nan), ctypes.byref(made))
    library.from_bf16(made, ctypes.byref(back))
    assert np.isnan(back.value)


def test_guidance_and_scale_are_the_formulas(library):
    out = ctypes.c_float()
    library.guide(*floats(0.7, -0.4, 7.5), ctypes.byref(out))
    assert out.value == guided(np.float32([0.7]), np.float32([-0.4]), 7.5)[0]
    library.scale(*floats(0.7, 0.3), ctypes.byref(out))
    assert out.value == np.float32(0.7) * np.float32(0.3)


def test_a_step_is_the_schedules_rule(library):
    step = Step(500.0, 1.0, a=0.9, b=-0.35, c=0.2, history_x=0.15, history_m=-0.6, keep=0.0, noise=0.0)
    x, m, n, h = np.float32([0.31]), np.float32([-1.7]), np.float32([0.77]), np.float32([0.051])
    out = (ctypes.c_float * 2)()
    numbers = (step.a, step.b, step.c, step.history_x, step.history_m)
    library.step(*floats(*map(float, (x[0], m[0], n[0], h[0]))), *floats(*numbers), out)
    following, history = update(step, x, m, n, h)
    assert out[0] == following[0] and history is not None and out[1] == history[0]
