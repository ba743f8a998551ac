"""What a norm site saw of a text, all batches together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normlab.numerics import RangeCounts
from normlab.numerics.histogram import median, packed
from normlab.numerics.stage_counts import NEVER, StageCounts


@dataclass(frozen=True)
class RangeStats:
    """Rows of one norm, padding left out; see `normlab.numerics.RangeCounts` for Σ̂ and Σ.

    Args:
        rows: rows seen; a head is a row of its own.
        overflowed: rows whose Σ̂ is not finite.
        subnormal: rows whose Σ̂ is below the format's smallest normal, but not zero.
        zero: rows whose Σ̂ is zero though the row is not.
        above: rows whose Σ is above the format's largest value.
        below_normal: rows whose Σ is below its smallest normal.
        below_subnormal: those of them below its smallest subnormal.
        precision_loss: rows on which underflow may cost more than one rounding.
        underflow_errors: those of `below_normal` on which it may: not ruled by ε.
        outside: elements of its input, before any scale, beyond the largest value of the format
            that the column holds it in.
        sum_error: mean of Σ̂/Σ − 1 over the rows that did not overflow; −0.3 says that sums stall
            (swamping). None where all did.
        max_abs: largest |x|.
        max_norm: largest ‖x‖ (‖x − μ‖ where the norm centres).
        median_norm: its median over rows that are numbers, within 9 %; None where there are none.
        squares: histogram of ‖x‖², as `normlab.numerics.histogram.packed` writes it.
        sums: that of Σ, ‖x‖²/s².
        stages: of a datapath, by stage: `max_abs`, the largest |value| that is finite; `overflowed`
            rows with a value that isn't; `subnormal` values; `first`, [window, position] of the
            first row that isn't finite, or None.
    """

    rows: int
    overflowed: int
    subnormal: int
    zero: int
    above: int
    below_normal: int
    below_subnormal: int
    precision_loss: int
    underflow_errors: int
    outside: int
    sum_error: float | None
    max_abs: float
    max_norm: float
    median_norm: float | None
    squares: Mapping[str, Any]
    sums: Mapping[str, Any]
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Sequence[RangeCounts], size: int, length: int) -> "RangeStats":
        """Batches of `size` windows of `length` together."""

        def column(name: str) -> np.ndarray:
            return np.array([getattr(part, name) for part in parts])

        counts = {name: int(column(name).sum(dtype=np.int64)) for name in _COUNTS}
        finite = counts["rows"] - counts["overflowed"]
        squares, sums = (column(n).sum(axis=0, dtype=np.int64) for n in ("squares", "sums"))
        middle = median(squares)
        return cls(
            **counts,
            sum_error=float(column("error").sum(dtype=np.float64)) / finite if finite else None,
            max_abs=float(column("max_abs").max()),
            max_norm=math.sqrt(column("max_square").max()),
            median_norm=None if middle is None else math.sqrt(middle),
            squares=packed(squares),
            sums=packed(sums),
            stages={
                name: _stage([part.stages[name] for part in parts], size * length, length)
                for name in parts[0].stages
            },
        )


def _stage(parts: Sequence[StageCounts], size: int, length: int) -> dict[str, Any]:
    """A stage's batches of `size` positions together."""
    lost = [i * size + int(part.first) for i, part in enumerate(parts) if part.first != NEVER]
    return {
        "max_abs": float(max(part.max_abs for part in parts)),
        "overflowed": int(sum(int(part.overflowed) for part in parts)),
        "subnormal": int(sum(int(part.subnormal) for part in parts)),
        "first": list(divmod(lost[0], length)) if lost else None,
    }


_COUNTS = (
    "rows", "overflowed", "subnormal", "zero", "above", "below_normal", "below_subnormal",
    "precision_loss", "underflow_errors", "outside",
)  # fmt: skip
