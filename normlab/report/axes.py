"""Axes: from values to places on a chart, and the numbers that stand beside them."""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """One axis of a chart, linear or logarithmic.

    Args:
        low: the value at its beginning.
        high: the value at its end, above `low`.
        label: what it shows.
        log: equal factors are equal lengths; both ends are above zero.
        ticks: (value, what is written there).
    """

    low: float
    high: float
    label: str
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()

    def at(self, value: float) -> float:
        """Where a value lies: 0 at the beginning, 1 at the end; what is no number, at the end."""
        if not math.isfinite(value):
            return 1.0
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        value = max(value, sys.float_info.min)
        return math.log(value / self.low) / math.log(self.high / self.low)


def linear(values: Iterable[float], label: str) -> Axis:
    """An axis over the finite ones of `values`, a little wider, with round ticks, seven at most."""
    known = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(known), max(known)
    spare = 0.04 * (high - low) or 0.5
    axis = Axis(low - spare, high + spare, label)
    step = _round_step((axis.high - axis.low) / 7)
    first = math.ceil(axis.low / step)
    places = [k * step for k in range(first, math.floor(axis.high / step) + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(axis.low, axis.high, label, False, [(v, f"{v:,.{decimals}f}") for v in places])


def _round_step(about: float) -> float:
    """1, 2 or 5 times a power of ten, at least `about`."""
    power = 10.0 ** math.floor(math.log10(about))
    return next(k * power for k in (1, 2, 5, 10) if k * power >= about * (1 - 1e-9))


def decades(values: Iterable[float], label: str) -> Axis:
    """A logarithmic axis over positive values, with a tick at 1, 2 and 5 of each power of ten.

    Where that makes too many, powers of ten only.
    """
    known = [v for v in values if v > 0 and math.isfinite(v)] or [1.0]
    low, high = min(known) / 1.3, max(known) * 1.3
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        places = [k * 10.0**e for e in exponents for k in factors if low <= k * 10.0**e <= high]
        if len(places) <= 8:
            break
    step = max(1, -(-len(places) // 8))
    ticks = [(v, brief(v)) for v in places[::step]] or [(known[0], f"{known[0]:.2g}")]
    return Axis(low, high, label, True, ticks)


def brief(value: float) -> str:
    """A round number as one writes it: 0.1, 50, 1e-3, 2e5."""
    if 0.1 <= value < 1000:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def octaves(values: Iterable[float], label: str) -> Axis:
    """A logarithmic axis over positive values, with ticks at powers of two."""
    known = [v for v in values if v > 0 and math.isfinite(v)] or [1.0]
    low, high = math.floor(math.log2(min(known))) - 1, math.ceil(math.log2(max(known))) + 1
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64) if (high - low) / s <= 10)
    ticks = [(2.0**e, power(e)) for e in range(-(-low // step) * step, high + 1, step)]
    return Axis(2.0**low, 2.0**high, label, True, ticks)


def names(labels: Sequence[str], label: str) -> Axis:
    """An axis with a place for each name: 0, 1, 2, …"""
    return Axis(-0.5, len(labels) - 0.5, label, False, list(enumerate(labels)))


def power(exponent: int) -> str:
    """A power of two as such: 2⁻¹⁴."""
    return "2" + str(exponent).translate(_SUPERSCRIPTS)
