"""Standard normal noise that is a pure function of where it is: no stream, no state, no order.

    word    Philox4x32-10 of the counter (x >> 2, y, channel, level << 16 | step) under the key (seed, seed >> 32);
            the words 0, 1, 2, 3 of one counter belong to its four neighbours x & 3
    normal  z = r P(w)     r = (2 word' + 1) / 2^32, word' the word read as signed     w = -log2(1 - r^2)

So y and channel have 32 bits each, x has 34, level and step have 16 each: no two values share a word, in pictures of up
to 2^30 cells a side. r is the middle of one of 2^32 equal steps of (-1, 1), and r P(w) approximates the inverse of the
normal distribution function, sqrt(2) erfinv(r), in the manner of Giles: P is a polynomial in w, from w = 7.5 on (|z| >
2.77) one in sqrt(w). The logarithm is the exponent's bits and a polynomial in the mantissa. The polynomials are minimax
fits of our own; z is within 6e-7 of its value, and |z| at most 6.34.

Numbers  float32 additions, multiplications and one correctly rounded square root, in a fixed order: NumPy and a GPU
         agree to the last bit, if the latter does not fuse multiplications with additions.
Shapes   result: (channels, rows, columns) of the region.
Sources  Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011. Giles, Approximating the erfinv function,
         GPU Computing Gems, 2011.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Normals = NDArray[np.float32]

LIMIT = 2**30  # of every coordinate: kernels count in int32, and a little beyond the region
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # what is added to the key's words each round
ROUNDS = 10
# Highest power first, exactly representable in float32.
LOG2 = (
    0.17065852880477905, -0.2726866602897644, 0.2972504496574402, -0.3589631915092468, 0.48046624660491943,
    -0.7213758230209351, 1.442699670791626,
)  # fmt: skip
ROOT_HALF_BITS = 0x3F3504F3  # float32 sqrt(1/2): mantissas are taken from [sqrt(1/2), sqrt(2))
SPLIT = 7.5
CENTRE_SHIFT, CENTRE = 3.75, (
    3.541635251735897e-08, -4.6074555370978487e-07, -1.356199163637939e-06, 7.00675300322473e-05,
    -0.0005504154833033681, -0.003082629293203354, 0.2409236878156662, 2.1578900814056396,
)  # fmt: skip
TAIL_SHIFT, TAIL = 4.125, (
    -7.167618605308235e-05, 0.0003032804233953357, -0.0005552731454372406, 0.000876980775501579,
    -0.0019059221958741546, 0.0036528671626001596, 1.185539960861206, 4.623493194580078,
)  # fmt: skip
_BLOCK = 32768  # counters at a time: the fastest of 4096 to 65536 that were tried


class Draw(NamedTuple):
    """Which noise: independent for every (seed, level, step)."""

    seed: int
    level: int
    step: int

    def check(self) -> None:
        """Refuse what the counter has no bits for."""
        if not (0 <= self.seed < 2**64 and 0 <= self.level < 2**16 and 0 <= self.step < 2**16):
            raise ValueError(
                f"noise of seed {self.seed}, level {self.level}, step {self.step}; the seed has 64 bits, level and "
                "step have 16 each, none is negative; take a remainder"
            )


def check_region(channels: int, region: tuple[int, int, int, int]) -> None:
    """Refuse a region that is not (y0, x0, y1, x1) with 0 <= y0 <= y1 < 2^30 and the same of x, or channels beyond."""
    y0, x0, y1, x1 = region
    if not (0 <= y0 <= y1 < LIMIT and 0 <= x0 <= x1 < LIMIT and 0 <= channels < LIMIT):
        raise ValueError(
            f"noise of {channels} channels of the region {tuple(region)}; wanted (y0, x0, y1, x1) with "
            "0 <= y0 <= y1 < 2^30 and the same of x; ask for the part inside the picture"
        )


def normal_reference(
    seed: int,
    level: int,
    step: int,
    channels: int,
    region: tuple[int, int, int, int],
    out: Normals | None = None,
) -> Normals:
    """(channels, rows, columns) normals of the cells y0 <= y < y1, x0 <= x < x1; the same ones whatever else is asked.

    `out` may be a view of something larger. ValueError for a seed, level, step or region that the counter cannot hold.
    Memory beside the result: under 4 MiB.
    """
    Draw(seed, level, step).check()
    check_region(channels, region)
    y0, x0, y1, x1 = region
    out = np.empty((channels, y1 - y0, x1 - x0), np.float32) if out is None else out
    last = np.asarray(level << 16 | step, np.uint32)
    work, products = np.empty((3, 4 * _BLOCK), np.float32), np.empty((5, _BLOCK), np.uint64)
    for planes, top, bottom, left, right in _blocks(channels, region):
        channel = np.arange(planes.start, planes.stop, dtype=np.uint32)[:, None, None]
        y = np.arange(top, bottom, dtype=np.uint32)[:, None]
        quad = np.arange(left, right, dtype=np.uint32)
        words = np.empty((len(channel), len(y), len(quad), 4), np.uint32)
        for k, word in enumerate(philox_reference((quad, y, channel, last), seed, products)):
            words[..., k] = word
        fresh = normal_from_bits_reference(words, work[:, : words.size]).reshape(len(channel), len(y), -1)
        low, high = max(4 * left, x0), min(4 * right, x1)
        target = out[planes, top - y0 : bottom - y0, low - x0 : high - x0]
        target[...] = fresh[:, :, low - 4 * left : high - 4 * left]
    return out


def _blocks(channels: int, region: tuple[int, int, int, int]) -> Iterator[tuple[slice, int, int, int, int]]:
    """(channels, first row, end row, first quad, end quad) of at most _BLOCK counters each."""
    y0, x0, y1, x1 = region
    first, end = x0 >> 2, -(-x1 // 4)
    across = min(max(end - first, 1), _BLOCK)
    down = min(max(y1 - y0, 1), _BLOCK // across)
    deep = _BLOCK // (across * down)
    for channel in range(0, channels, deep):
        for top in range(y0, y1, down):
            for left in range(first, end, across):
                planes = slice(channel, min(channel + deep, channels))
                yield planes, top, min(top + down, y1), left, min(left + across, end)


def philox_reference(
    counter: tuple[Words, Words, Words, Words], seed: int, work: NDArray[np.uint64] | None = None
) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10 of four uint32 arrays that broadcast: where counters are the same along an axis, so is the work.

    Of a whole region that makes the first two rounds free and half of the third. `work` is (5, counters) of scratch,
    of which the result may be views.
    """
    c0, c1, c2, c3 = counter
    if work is None:
        work = np.empty((5, np.broadcast(*counter).size), np.uint64)
    mixed = work[4].view(np.uint32).reshape(2, -1)
    for turn in range(ROUNDS):
        k0 = np.uint32((seed + turn * WEYL[0]) & 0xFFFFFFFF)
        k1 = np.uint32(((seed >> 32) + turn * WEYL[1]) & 0xFFFFFFFF)
        here = 2 * (turn % 2)  # c1 and c3 still look into the products of the round before
        low0, high0 = _halves(c0, MULTIPLIERS[0], work[here])
        low2, high2 = _halves(c2, MULTIPLIERS[1], work[here + 1])
        c0 = np.bitwise_xor(high2, c1, out=_shaped(mixed[0], high2, c1))
        c2 = np.bitwise_xor(high0, c3, out=_shaped(mixed[1], high0, c3))
        c0 ^= k0
        c2 ^= k1
        c1, c3 = low2, low0
    return c0, c1, c2, c3


def _halves(word: Words, multiplier: int, out: NDArray[np.uint64]) -> tuple[Words, Words]:
    """The low and the high 32 bits of a product, as views of it."""
    product = np.multiply(word, np.uint64(multiplier), out=_shaped(out, word), dtype=np.uint64)
    halves = product[..., None].view(np.uint32)
    low = 0 if sys.byteorder == "little" else 1
    return halves[..., low], halves[..., 1 - low]


def _shaped(scratch: NDArray[Any], *like: NDArray[Any]) -> NDArray[Any]:
    """The front of `scratch`, in the shape that `like` broadcasts to."""
    shape = np.broadcast_shapes(*(array.shape for array in like))
    return scratch[: math.prod(shape)].reshape(shape)


def normal_from_bits_reference(words: Words, work: Normals | None = None) -> Normals:
    """One standard normal for each 32-bit word, rising (to rounding) with the word read as signed.

    `work` is (3, words) of scratch, of which the first row becomes the result; fresh memory costs more than arithmetic.
    """
    signed = words.reshape(-1).view(np.int32)
    z, w, spare = np.empty((3, words.size), np.float32) if work is None else work
    bits = spare.view(np.int32)
    np.right_shift(signed, 31, out=bits)
    bits ^= signed
    bits ^= 0x7FFFFFFF
    distance = _middle(bits, z)  # 1 - |r| from the bits: exact where r is next to one
    np.subtract(np.float32(2.0), distance, out=spare)
    spare *= distance
    _minus_log2(spare, out=w, work=z)
    np.subtract(w, np.float32(CENTRE_SHIFT), out=spare)
    horner(spare, CENTRE, z)
    rare = np.flatnonzero(w > np.float32(SPLIT))  # about 3 in 1,000
    z[rare] = horner(np.sqrt(w[rare]) - np.float32(TAIL_SHIFT), TAIL)
    z *= _middle(signed, spare)
    result: Normals = z.reshape(words.shape)
    return result


def _middle(steps: NDArray[np.int32], out: Normals) -> Normals:
    """(steps + 1/2) / 2^31."""
    out[...] = steps
    out += np.float32(0.5)
    out *= np.float32(2.0**-31)
    return out


def _minus_log2(q: Normals, *, out: Normals, work: Normals) -> None:
    """Of 2^-31 <= q <= 1, to 3.1e-7, never below zero. All three are overwritten."""
    bits, exponent = q.view(np.int32), work.view(np.int32)
    bits -= np.int32(ROOT_HALF_BITS)
    np.right_shift(bits, 23, out=exponent)
    bits &= 0x7FFFFF
    bits += np.int32(ROOT_HALF_BITS)
    q -= np.float32(1.0)  # now mantissa - 1
    horner(q, LOG2, out)
    out *= q
    out += exponent.astype(np.float32)
    np.negative(out, out=out)


def horner(t: NDArray[Any], coefficients: tuple[float, ...], out: NDArray[Any] | None = None) -> NDArray[Any]:
    """The polynomial of t, highest power first, in t's own precision: one multiplication and one addition a power."""
    kind = t.dtype.type
    total: NDArray[Any] = np.multiply(t, kind(coefficients[0]), out=out)
    for coefficient in coefficients[1:-1]:
        total += kind(coefficient)
        total *= t
    total += kind(coefficients[-1])
    return total
