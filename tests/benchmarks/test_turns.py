"""The timer of the benchmarks: every call in every round, and each first in its turn."""

import itertools

from turns import in_turns


def test_calls_take_turns_after_one_call_each_to_warm_up():
    order, ticks = [], itertools.count()
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = in_turns(calls, 4, clock=lambda: float(next(ticks)))
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert seconds == {name: [1.0] * 4 for name in "abc"}
