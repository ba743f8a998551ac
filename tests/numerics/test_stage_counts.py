"""What every stage of a datapath held, against NumPy; of a precision nothing is kept."""

import jax
import numpy as np

from normlab.evaluation.range_stats import RangeStats
from normlab.numerics import Accumulator, Datapath, Mean, RangeRecorder, Root
from normlab.numerics.stage_counts import NEVER

PATH = Datapath(
    sum="fp16:sequential",
    input="bf16",
    mean=Mean(format="fp16"),
    eps="fp16",
    root=Root("sqrt", "fp16"),
    product="fp16",
    output="fp16",
    name="my-unit",
)
SHAPE = (2, 5, 3, 32)  # [b, l, heads, d]


def rows():
    """A square that overflows at [1, 2], a sum at [0, 4], subnormal squares at [0, 0]; padding."""
    x = np.float32(np.random.default_rng(0).normal(size=SHAPE))
    x[1, 2, 1, 7], x[0, 4, 2], x[0, 0, 0], x[1, 4] = 300, 100, 2e-3, 0
    return x


@jax.jit
def seen(x):
    found = []
    for path in (PATH, "fp16:sequential", Datapath(sum="fp16:sequential")):
        recorder = RangeRecorder(path)
        y = recorder.affine(recorder.normalize(x, 1e-3), None, None, np.float32)
        acc = Accumulator(path)
        same = acc.affine(acc.normalize(x, 1e-3), None, None, np.float32)
        found.append((recorder.counts(), y, same))
    return found


def test_each_stage_by_its_own_format_and_its_first_row_that_is_not_finite():
    x = rows()
    (counts, y, same), *plain = seen(x)
    assert np.array_equal(y, same, equal_nan=True)
    assert [sorted(c.stages) for c, *_ in plain] == [[], []]
    with np.errstate(over="ignore"):
        squares = np.float32(np.float16(np.float32(x) ** 2))
    least = 2.0**-14
    stages = counts.stages
    assert list(stages) == ["eps", "input", "mean", "output", "product", "root", "square", "sum"]
    assert float(stages["input"].max_abs) == np.abs(x).max() == 300
    assert int(stages["input"].overflowed) == 0
    assert int(stages["input"].first) == NEVER
    assert int(stages["square"].overflowed) == 1
    assert int(stages["square"].first) == 1 * SHAPE[1] + 2
    tiny = (squares > 0) & (squares < least)
    assert abs(int(stages["square"].subnormal) - tiny.sum()) <= 2  # x itself is rounded to bf16
    assert int(stages["square"].subnormal) >= 32
    assert int(stages["sum"].overflowed) == 2
    assert int(stages["sum"].first) == 0 * SHAPE[1] + 4
    assert int(stages["output"].overflowed) == 0  # 1/∞ is 0
    assert float(stages["output"].max_abs) == np.abs(np.asarray(y)).max()


def test_batches_come_together_and_a_row_is_told_by_window_and_position():
    counts = jax.device_get(seen(rows())[0][0])
    quiet = jax.device_get(seen(np.ones(SHAPE, np.float32))[0][0])
    found = RangeStats.of([quiet, counts, counts], *SHAPE[:2]).stages
    assert found["sum"]["first"] == [2, 4]
    assert found["square"]["first"] == [3, 2]
    assert found["root"]["first"] is None
    assert (found["sum"]["overflowed"], found["input"]["max_abs"]) == (4, 300.0)


def test_counts_of_windows_further_on_have_their_first_row_there():
    counts = jax.device_get(seen(rows())[0][0])
    moved = counts.moved(3, SHAPE[1], 7).stages
    assert int(moved["square"].first) == (3 + 1) * 7 + 2
    assert int(moved["sum"].first) == (3 + 0) * 7 + 4
    assert int(moved["root"].first) == NEVER
