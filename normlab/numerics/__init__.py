"""Formats, orders, precisions, datapaths, the accumulator (docs/numerics.md, docs/datapath.md)."""

from normlab.numerics.accumulate import accumulate, sum_of_squares
from normlab.numerics.accumulator import Accumulator
from normlab.numerics.datapath import Datapath, Mean
from normlab.numerics.formats import FloatFormat, round_to
from normlab.numerics.orders import Order
from normlab.numerics.precision import Precision
from normlab.numerics.presets import Arithmetic, arithmetic, datapaths
from normlab.numerics.range_counts import RangeCounts
from normlab.numerics.range_recorder import RangeRecorder
from normlab.numerics.refusal import DoesNotFit
from normlab.numerics.root import Root

__all__ = [
    "Accumulator",
    "Arithmetic",
    "Datapath",
    "DoesNotFit",
    "FloatFormat",
    "Mean",
    "Order",
    "Precision",
    "RangeCounts",
    "RangeRecorder",
    "Root",
    "accumulate",
    "arithmetic",
    "datapaths",
    "round_to",
    "sum_of_squares",
]
