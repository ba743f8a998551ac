"""Formats, orders of summation, precisions, the accumulator (docs/numerics.md)."""

from normlab.numerics.accumulate import accumulate, sum_of_squares
from normlab.numerics.accumulator import Accumulator
from normlab.numerics.formats import FloatFormat, round_to
from normlab.numerics.orders import Order
from normlab.numerics.precision import Precision
from normlab.numerics.range_counts import RangeCounts
from normlab.numerics.range_recorder import RangeRecorder

__all__ = [
    "Accumulator",
    "FloatFormat",
    "Order",
    "Precision",
    "RangeCounts",
    "RangeRecorder",
    "accumulate",
    "round_to",
    "sum_of_squares",
]
