"""What is compiled ahead of time: one frozen description for each form of a kernel. No triton here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CAPABILITIES = (80, 86, 89, 90, 100, 120)  # compute capability times ten
# Bytes of shared memory that one block may have, CUDA C++ Programming Guide, table of technical specifications.
SHARED_NBYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled form of a kernel.

    `signature` holds the arguments that are given at run time, by the kernel's own names and in its order, with their
    Triton types ("*bf16", "i64", "fp32"); `constants` holds all others. Together they are the kernel's parameters.
    `grid` is three Python expressions over both ("cdiv(rows, BLOCK)"; there are cdiv, min, max and integer arithmetic).
    """

    name: str  # unique, and all that a caller has to know: "attention.bf16.d512.kv"
    function: Any  # the @triton.jit function
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    divisible: tuple[str, ...] = ()  # pointers and integers that are promised to be multiples of 16 (see divisor)
    grid: tuple[str, str, str] = ("1", "1", "1")
    options: Mapping[str, Any] = field(default_factory=dict)  # of the compiler, further: {"enable_fp_fusion": False}
    divisor: int = 16  # what the integers in `divisible` are multiples of; addresses are always multiples of 16 bytes
