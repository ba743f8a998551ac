"""Which 1/rms explains a row: an output grows with it, so that the row's outputs enclose it.

Of 8 bits the largest of each part does, which is its scale; a code may not.
"""

import numpy as np

from normlab.probe.stages import Tail, leaving

LARGEST = int(np.float32(np.inf).view(np.int32))
"""Bits of infinity, by which a row is divided whose sum has overflowed."""


def interval(
    z: np.ndarray, weight: np.ndarray, y: np.ndarray, tail: Tail, divides: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest float32 ≥ 0 by which rows z become y, [n] each; lo > hi: none.

    Found by bisection over the bits: every stage behind it rounds, and so is monotone. Rows with an
    output that is no number tell nothing here: −∞ to ∞.

    Args:
        z: rows [n, d].
        weight: γ [n, d].
        y: what left the kernel [n, d].
        tail: the stages behind the product.
        divides: the number divides the row.
    """
    sign, parts = np.sign(z) * np.sign(weight), tail.parts(z.shape[-1])

    def growing(y: np.ndarray) -> np.ndarray:
        if parts is None:
            return y * sign
        beyond = np.where(np.isnan(y), np.inf, np.abs(y))  # an infinity makes NaN of its part
        return beyond.reshape(len(y), -1, parts).max(-1)

    told = (growing(sign) != 0) & np.isfinite(y).all(-1, keepdims=True)
    want = growing(y)

    def made(bits: np.ndarray) -> np.ndarray:
        scalar = bits.astype(np.int32).view(np.float32)[:, None]
        return growing(leaving(z, scalar, weight, tail, divides))

    def enough(bits: np.ndarray) -> np.ndarray:
        got = made(bits)
        return (~told | ((got <= want) if divides else (got >= want))).all(-1)

    def too_much(bits: np.ndarray) -> np.ndarray:
        got = made(bits)
        return (told & ((got < want) if divides else (got > want))).any(-1)

    least, beyond = first(enough, len(z)), first(too_much, len(z))
    ends = least, beyond - 1
    none = (least > LARGEST) | (beyond == 0)
    low, high = (np.clip(e, 0, LARGEST).astype(np.int32).view(np.float32) for e in ends)
    low = np.where(told.any(-1), low, -np.float32(np.inf))
    return np.where(none, np.float32(1), low), np.where(none, np.float32(0), high)


def inside(number: np.ndarray, limits: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Where a number lies in the interval; NaN where any does."""
    number = np.where(np.isnan(number), -np.float32(np.inf), number)
    return (limits[0] <= number) & (number <= limits[1])


def first(true: object, n: int) -> np.ndarray:
    """The least bits of a float32 ≥ 0 at which `true` holds, LARGEST + 1 where nowhere; [n]."""
    low, high = np.zeros(n, np.int64), np.full(n, LARGEST + 1)
    while (low < high).any():
        middle = (low + high) // 2
        holds = true(np.minimum(middle, LARGEST))  # type: ignore[operator]
        high = np.where(holds & (low < high), middle, high)
        low = np.where(~holds & (low < high), middle + 1, low)
    return low
