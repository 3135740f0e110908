"""Which operations of a graph run in half precision: one rule for every engine that does not choose by itself.

    products (convolutions, matrix products)     in half: nearly all of the time is here
    sums, powers, trigonometry, norms' statistics  in float32: their results must not round before they are used
    a mask, added to what goes into a softmax      in float32: its minus infinity is a large number that halves lack
    everything else                              in half where one of its arguments, constants aside, is
    a graph's results                            float32

Constants follow the operation that reads them. A graph's inputs begin in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from widefield.engine.graphs import Step

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"})
WIDE = frozenset({
    "ReduceSum", "ReduceMean", "ReduceL2", "Pow", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "Range", "Erf",
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "BatchNormalization",
})  # fmt: skip


def runs_in_half(step: Step, users: Sequence[Step], arguments_in_half: Sequence[bool]) -> bool:
    """Whether an operation computes in half precision: from who reads its result, and from which of its arguments
    (constants left out) are in half."""
    if step.kind in PRODUCTS:
        return True
    return step.kind not in WIDE and not masks(step, users) and any(arguments_in_half)


def masks(step: Step, users: Sequence[Step]) -> bool:
    """Whether an operation adds a mask to what a softmax reads."""
    return step.kind == "Add" and any(user.kind == "Softmax" for user in users)
