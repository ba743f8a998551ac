"""The sentence under a table says what its numbers are, and nothing that they are not."""

import math

from normlab.results import tables
from normlab.results.formats import markdown, terminal
from normlab.results.summary import summary
from normlab.results.table import LEGEND
from tests.support.records import record

PRECISIONS = ("fp32", "fp16", "fp16+slanc")


def rows(name, *values, placement="pre", **fields):
    """A model's records: perplexities in `PRECISIONS`, None where the column means nothing."""
    for precision, value in zip(PRECISIONS, values, strict=True):
        bad = {"status": "n/a"} if value is None else {}
        delta = {} if value is None else {"delta": value - values[0], "delta_stderr": 0.01}
        more = fields if precision == "fp16" else {}
        yield record(name, precision, placement=placement, perplexity=value, **delta, **bad, **more)


def said(*models):
    (table,) = tables(r for model in models for r in model)
    return summary(table)


def test_one_model_that_breaks_and_is_restored():
    broken = rows("smol", 30.0, 49150.0, 30.003, overflowed_rows=72818)
    assert said(broken) == (
        "fp16 takes smol from 30.000 to 4.915e+04 (72,818 rows overflow); "
        "fp16+slanc restores smol to within 0.01 % of fp32 (+0.003 ± 0.010)."
    )


def test_what_a_rule_does_not_restore_is_not_called_restored():
    text = said(rows("smol", 30.0, 31.0, 30.5))
    assert "fp16 takes smol from 30.000 to 31.000;" in text
    assert text.endswith(
        "fp16+slanc still takes smol from 30.000 to 30.500; "
        "the rule to use is random_tokens: precision=[fp32,fp16+random_tokens]."
    )
    assert "restores" not in text
    assert "takes smol from 30.000 to nan" in said(rows("smol", 30.0, math.nan, math.inf))


def test_several_models_have_a_range_and_the_worst_of_them_a_name():
    text = said(
        rows("a", 90.0, 90.009, 90.0),
        rows("b", 80.0, 79.998, 80.004, placement="post"),
        rows("c", 120.0, None, None, placement="peri"),
    )
    assert text == (
        "In fp32 the 3 models lie between 80.000 (rmsnorm post) and 120.000 (rmsnorm peri); "
        "fp16 stays within 0.01 % of fp32 (at most +0.009 ± 0.010, rmsnorm pre); "
        "fp16+slanc stays within 0.005 % of fp32 (at most +0.004 ± 0.010, rmsnorm post)."
    )


def test_some_of_several_break():
    one = rows("a", 90.0, 100.0, 90.0, overflowed_rows=3)
    text = said(one, rows("b", 80.0, 80.0, 80.0, placement="post"))
    assert "takes 1 of 2 models, rmsnorm pre, from 90.000 to 100.000 (3 rows overflow)" in text
    assert "restores rmsnorm pre to within 0 % of fp32 (+0.000 ± 0.010)" in text
    two = [rows("a", 90.0, 99.0, 90.0), rows("b", 80.0, 90.0, 80.08, placement="post")]
    text = said(*two)
    assert "takes 2 of 2 models, most of all rmsnorm post, from 80.000 to 90.000;" in text
    assert "restores those 2 to within 0.1 % of fp32 (at most +0.080 ± 0.010, rmsnorm post)" in text


def test_nothing_to_say():
    assert said([record()]) == ""
    assert said([record(perplexity=None, status="diverged")]) == ""
    assert said([record(), record("b")]).startswith("In fp32 the 2 models lie between 5.116 (a)")


def test_runs_of_a_sweep_are_named_by_what_sets_them_apart():
    """Their models' names are hashes, which say nothing."""
    config = {"norm": {"type": "rmsnorm"}, "placement": {"type": "pre"}, "seed": 0}
    facts = [{"config": config | {"optimizer": {"lr": lr}}} for lr in (0.1, 0.2)]
    models = [[record(f"h{i}", perplexity=90.0 + i, facts=f)] for i, f in enumerate(facts)]
    wanted = "lie between 90.000 (rmsnorm pre, lr 0.1) and 91.000 (rmsnorm pre, lr 0.2)."
    assert said(*models).endswith(wanted)


def test_it_stands_under_its_table():
    made = tables(rows("smol", 30.0, 31.0, 30.0))
    assert f"|\n\n{summary(made[0])}\n\n{LEGEND}" in markdown(made)
    assert summary(made[0]) in [str(part).strip() for part in terminal(made).renderables]


def test_what_a_transform_costs_is_counted_from_the_model_before_it():
    """In fp32 too, and a column that keeps to its own fp32 has not restored anything."""
    plain = record("m", "fp32", perplexity=30.0)
    moved = [
        record("m (i-bert)", p, transform="i-bert", perplexity=33.0, delta=3.0, delta_stderr=0.1)
        for p in ("fp32", "fp16")
    ]
    same = record("m (fold)", "fp32", transform="fold", perplexity=30.0, delta=0.0)
    (table,) = tables([plain, *moved, same])
    assert "fp32 takes m (i-bert) from 30.000 to 33.000" in summary(table)
    assert "fp16 takes m (i-bert) from 30.000 to 33.000" in summary(table)
    assert [str(cells["fp32"]) for cells in table.rows.values()] == [
        "30.000", "33.000 (+3.00 ± 0.10)", "30.000 (+0)",
    ]  # fmt: skip
