"""What a narrow column costs over training: lines that are the records' own numbers."""

import dataclasses
import math

import pytest

from normlab.plots.checkpoints import checkpoints_figure, narrow, of_checkpoints
from normlab.results.spread import groups
from tests.support.seeds import record

pytest.importorskip("matplotlib")


def at(step, precision, perplexity, delta, overflowed, norm="rmsnorm"):
    made = record(norm, 0, perplexity, precision, delta=delta, rows=200, overflowed_rows=overflowed)
    model = dataclasses.replace(
        made.model, facts=made.model.facts | {"step": step, "checkpoints": "all"}
    )
    return dataclasses.replace(made, model=model)


ROWS = [
    *(at(step, "fp32", 50.0, 0.0, 0, norm) for step in (0, 40) for norm in ("rmsnorm", "dyt")),
    at(40, "fp16", 55.0, 5.0, 30), at(0, "fp16", 50.5, 0.5, 0),
    at(0, "fp16", 50.0, 0.0, 0, "dyt"), at(40, "fp16", math.nan, math.nan, 200, "dyt"),
]  # fmt: skip


def test_lines_are_the_differences_and_the_rows_that_overflow():
    rows = [*ROWS, record("rmsnorm", 0, 10.0)]
    assert of_checkpoints(rows) == ROWS
    assert narrow(ROWS) == ["fp16"]
    made = checkpoints_figure(ROWS, narrow(ROWS))
    upper, lower = made.axes
    found = {line.get_label(): line.get_xydata().tolist() for line in upper.lines}
    assert found["rmsnorm"] == [[0, pytest.approx(1.0)], [40, pytest.approx(10.0)]]
    assert found["dyt"][0] == [0, 0.0]
    assert math.isnan(found["dyt"][1][1])
    lost = {line.get_label(): line.get_ydata().tolist() for line in lower.lines}
    assert lost == {"rmsnorm": [0, 15], "dyt": [0, 100]}


def test_checkpoints_are_no_seeds():
    (group,) = groups([*ROWS, record("rmsnorm", 0, 10.0)])
    assert [r.result.perplexity for r in group.records["fp32"]] == [10.0]
