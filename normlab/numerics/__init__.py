"""Formats, orders of summation, precisions, the accumulator (docs/numerics.md)."""

from normlab.numerics.accumulate import accumulate, sum_of_squares
from normlab.numerics.accumulator import Accumulator
from normlab.numerics.formats import FloatFormat, round_to
from normlab.numerics.observed import Observed
from normlab.numerics.orders import Order
from normlab.numerics.precision import Precision

__all__ = [
    "Accumulator",
    "FloatFormat",
    "Observed",
    "Order",
    "Precision",
    "accumulate",
    "round_to",
    "sum_of_squares",
]
