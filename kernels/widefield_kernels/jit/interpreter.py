"""Kernels on a machine without a GPU: Triton's interpreter, with what it gets wrong in bfloat16 repaired or refused.

    TRITON_INTERPRET=1     has to be in the environment before triton is imported; `repair` then comes once

Triton 3.9 holds bfloat16 as its 16 bits in unsigned integers. A dot multiplies those integers; a float32 is cut off
instead of rounded to the nearest even; and +, *, exp and the like compute with the integers. The first two are mended
here. The last is refused: a kernel that widens to float32 first, as ours do, is right on a GPU too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

REFUSED = (
    "fadd", "fsub", "fmul", "fdiv", "precise_divf", "frem", "fneg", "fma", "fabs", "clampf", "maximumf", "maxnumf",
    "minimumf", "minnumf", "exp", "exp2", "log", "log2", "cos", "sin", "sqrt", "precise_sqrt", "rsqrt", "erf", "floor",
    "ceil",
)  # fmt: skip


def interpreted() -> bool:
    """Whether kernels of this process run in the interpreter (if triton is imported after this)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def widen(bits: NDArray[Any]) -> NDArray[np.float32]:
    """bfloat16 in 16 bits to float32: exact."""
    wide = np.asarray(bits).astype(np.uint32)
    return np.asarray(wide << np.uint32(16)).view(np.float32).reshape(wide.shape)


def narrow(values: NDArray[Any]) -> NDArray[np.uint16]:
    """float32 to bfloat16's 16 bits, to the nearest and half to even; a NaN stays one."""
    flat = np.ascontiguousarray(values, np.float32)
    bits = flat.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(flat), np.uint32(0x7FC0), rounded).astype(np.uint16).reshape(np.shape(values))


def repair() -> None:
    """Mend the interpreter of this process. Does nothing a second time, or where kernels run on a GPU."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if not interpreted() or hasattr(builder, "widefield_repaired"):
        return
    builder.widefield_repaired = True
    _mend_casts(interpreter, builder)
    _mend_dot(interpreter, builder)
    for name in REFUSED:
        if hasattr(builder, f"create_{name}"):
            setattr(builder, f"create_{name}", _refusing(getattr(builder, f"create_{name}"), name))


def _is_bfloat16(handle: Any) -> bool:
    kind = getattr(handle, "dtype", None)
    return getattr(getattr(kind, "scalar", kind), "name", "") == "bf16"


def _mend_casts(interpreter: Any, builder: Any) -> None:
    plain_cast, plain_float = builder.cast_impl, builder.create_fp_to_fp
    handle_type = interpreter.TensorHandle

    def cast(self: Any, source: Any, kind: Any) -> Any:
        to = kind.scalar
        if _is_bfloat16(source) == (to.name == "bf16"):
            return plain_cast(self, source, kind)
        if to.name == "bf16":
            return handle_type(narrow(source.data), to)
        return handle_type(widen(source.data).astype(interpreter._get_np_dtype(to)), to)

    def float_to_float(self: Any, source: Any, kind: Any, rounding: Any) -> Any:
        if _is_bfloat16(source) != (kind.scalar.name == "bf16"):
            return cast(self, source, kind)
        return plain_float(self, source, kind, rounding)

    builder.cast_impl, builder.create_fp_to_fp = cast, float_to_float


def _mend_dot(interpreter: Any, builder: Any) -> None:
    plain = builder.create_dot

    def exact(handle: Any) -> Any:
        if not _is_bfloat16(handle):
            return handle
        import triton.language as tl

        return interpreter.TensorHandle(widen(handle.data), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any, **options: Any) -> Any:
        return plain(self, exact(a), exact(b), *rest, **options)

    builder.create_dot = dot


def _refusing(plain: Callable[..., Any], name: str) -> Callable[..., Any]:
    def create(self: Any, *arguments: Any, **options: Any) -> Any:
        if any(_is_bfloat16(argument) for argument in arguments):
            raise TypeError(
                f"the interpreter would compute {name} on the bits of a bfloat16; wanted float32; widen it with "
                ".to(tl.float32) after the load"
            )
        return plain(self, *arguments, **options)

    return create
