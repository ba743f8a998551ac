"""Mean and spread over seeds, the best learning rate, Welch's test."""

import math

import numpy as np
import pytest
from scipy import stats

from normlab.results.spread import LEGEND, best_rates, groups, lines, spreads
from tests.support.seeds import record


def by_head(found):
    head, *rest = found
    return [dict(zip(head, row, strict=True)) for row in rest]


def test_seeds_of_one_config_become_a_mean_and_a_sample_deviation():
    values = [100.0, 102.0, 107.0]
    (row,) = by_head(lines([record("rmsnorm", i, v) for i, v in enumerate(values)], ["fp32"]))
    assert (row["seeds"], row["p"]) == ("3", "*")
    assert row["fp32"] == "103.0 ± 3.6"  # 103, √13
    assert "optimizer.lr" not in row  # there was one


@pytest.mark.parametrize(
    ("values", "text"),
    [((75.0, 110.0), "92 ± 25"), ((20.0, 1600.0), "810 ± 1117"), ((90.0, 90.0), "90.000 ± 0"),
     ((2e10, 4e10), "3e+10 ± 1.4e+10"), ((math.inf, 90.0), "inf ± nan")],
)  # fmt: skip
def test_a_mean_has_the_digits_of_its_spread_and_no_exponent(values, text):
    (row,) = by_head(lines([record("rmsnorm", i, v) for i, v in enumerate(values)], ["fp32"]))
    assert row["fp32"] == text


def test_p_is_welchs_on_log_perplexity():
    a, b = [100.0, 101.0, 103.0], [110.0, 116.0, 112.0]
    records = [record("rmsnorm", i, v) for i, v in enumerate(a)]
    records += [record("layernorm", i, v) for i, v in enumerate(b)]
    first, second = by_head(lines(records, []))
    x, y = np.log(a), np.log(b)
    u, v = np.var(x, ddof=1) / 3, np.var(y, ddof=1) / 3
    t, nu = (y.mean() - x.mean()) / math.sqrt(u + v), (u + v) ** 2 / (u**2 / 2 + v**2 / 2)
    assert (first["p"], second["p"]) == ("*", f"{2 * stats.t.sf(t, nu):.2g}")


def test_the_learning_rate_is_chosen_on_validation_not_on_what_is_shown():
    records = [record("rmsnorm", s, 90.0 + s, lr=1e-2, valid=5.0) for s in (0, 1)]
    records += [record("rmsnorm", s, 95.0 + s, lr=1e-3, valid=4.0) for s in (0, 1)]
    (kept,) = best_rates(groups(records))
    assert kept.config["optimizer.lr"] == 1e-3


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ((5.0, 4.0, 6.0), "0.01 (best of 3)"),
        ((5.0, 4.0), "0.01 (best of 2, highest)"),
        ((3.0, 4.0, 6.0), "0.001 (best of 3, lowest)"),
        ((None, None), "0.001 (first of 2, lowest)"),
    ],
)
def test_the_chosen_rate_is_said_even_where_all_rows_have_the_same(losses, said):
    rates = (1e-3, 1e-2, 1e-1)
    made = [
        record(norm, seed, None if valid is None else 90.0 + seed, lr=lr, valid=valid)
        for norm in ("rmsnorm", "dyt")
        for lr, valid in zip(rates, losses, strict=False)
        for seed in (0, 1)
    ]
    assert [row["optimizer.lr"] for row in by_head(lines(made, []))] == [said, said]
    assert all(word in LEGEND for word in ("best of N", "lowest, highest", "validation"))


def test_rates_that_differ_between_norms_are_a_column():
    made = [record("rmsnorm", s, 90.0 + s, lr=1e-3) for s in (0, 1)]
    made += [record("dyt", s, 91.0 + s, lr=1e-2) for s in (0, 1)]
    assert [row["optimizer.lr"] for row in by_head(lines(made, []))] == ["0.001", "0.01"]


def test_a_diverged_seed_is_in_the_row_and_its_rate_is_not_chosen():
    records = [record("rmsnorm", s, 90.0 + s, lr=1e-3) for s in (0, 1)]
    records += [record("rmsnorm", 0, 50.0, lr=1e-2), record("rmsnorm", 1, None, lr=1e-2)]
    records[-1] = record("rmsnorm", 1, None, lr=1e-2, status="diverged", valid=3.0)
    (kept,) = best_rates(groups(records))
    assert kept.config["optimizer.lr"] == 1e-3
    (row,) = by_head(lines(records[2:], []))
    assert row["fp32"].endswith("; 1 diverged")
    assert row["seeds"] == "2"


@pytest.mark.parametrize(("state", "said"), [("diverged", "diverged"), ("running", "unfinished")])
def test_a_run_that_did_not_end_well_is_no_seed_though_it_has_a_number(state, said):
    records = [record("rmsnorm", s, 50.0 + s) for s in (0, 1, 2)]
    records[1].model.facts["training"]["state"] = state
    records += [record("dyt", s, 90.0 + s) for s in (0, 1)]
    first, second = by_head(lines(records, []))
    assert first["fp32"] == f"51.0 ± 1.4; 1 {said}"
    assert second["p"] == "*"  # what has lost a seed wins nothing
    assert math.isinf(groups(records)[0].valid_loss)


def test_where_and_on_what_a_run_was_trained_is_no_setting_and_its_text_is():
    records = [record("rmsnorm", s, 90.0 + s) for s in range(4)]
    for r in records:
        r.model.facts["config"] |= {
            "hosts": {"coordinator": f"here:{r.model.seed}"},
            "mesh": {"data": r.model.seed},
        }
        r.model.facts["config"]["data"] = {"corpus": "auto" if r.model.seed % 2 else "wikitext2"}
        r.model.facts["training_provenance"] = {"corpus": {"name": "wikitext2"}}
    (row,) = by_head(lines(records, []))
    assert (row["seeds"], "hosts.coordinator" in row) == ("4", False)
    for r in records[2:]:
        r.model.facts["training_provenance"] = {"corpus": {"name": "embedded"}}
    rows = by_head(lines(records, []))
    assert [(row["data.corpus"], row["seeds"]) for row in rows] == [
        ("wikitext2", "2"),
        ("embedded", "2"),
    ]


def test_low_precision_columns_give_the_mean_difference_and_all_overflows():
    records = [record("rmsnorm", s, 90.0) for s in (0, 1)]
    records += [
        record("rmsnorm", s, 91.0, "fp16", delta=1.0 + s, overflowed_rows=600) for s in (0, 1)
    ]
    (row,) = by_head(lines(records, ["fp16"]))
    assert row["fp16 (Δ)"] == "+1.50 ± 0.71; overflow 1,200"


def test_settings_that_differ_are_columns_and_a_record_made_again_counts_once():
    records = [record("rmsnorm", s, 90.0 + s) for s in (0, 1)] * 2
    for r in records:
        r.model.facts["config"]["norm"]["eps"] = 1e-5
    other = [record("rmsnorm", s, 80.0 + s) for s in (0, 1)]
    for r in other:
        r.model.facts["config"]["norm"]["eps"] = 1e-3
    rows = by_head(lines(records + other, []))
    assert [r["norm.eps"] for r in rows] == ["1e-05", "0.001"]
    assert rows[0]["seeds"] == "2"


def test_one_seed_each_is_no_spread():
    assert lines([record("rmsnorm", 0, 90.0), record("layernorm", 0, 91.0)], []) == []


def test_numbers_that_do_not_compare_share_no_table():
    records = [record("rmsnorm", s, 90.0 + s, tokenizer_hash="a") for s in (0, 1)]
    records += [record("rmsnorm", s, 30.0 + s, tokenizer_hash="b") for s in (0, 1)]
    first, second = (by_head(made) for _, made in spreads(records, []))
    assert [row["p"] for row in (*first, *second)] == ["*", "*"]


def test_what_the_protocol_reports_is_what_is_spread():
    words = {"reported": "word_perplexity", "word_perplexity": 400.0}
    (row,) = by_head(lines([record("rmsnorm", s, 90.0, **words) for s in (0, 1)], []))
    assert row["fp32"].startswith("400.000")


def test_a_seed_that_was_run_twice_counts_once():
    records = [record("rmsnorm", 0, 90.0), record("rmsnorm", 0, 90.0)]
    object.__setattr__(records[1].model, "name", "elsewhere")
    assert lines(records, []) == []
