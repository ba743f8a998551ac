"""The table for a paper: what it says, in Markdown, LaTeX and CSV."""

import csv
import io

import numpy as np
import pytest
from scipy import stats

from normlab.results.methods import as_csv, booktabs, methods, page, sentences
from tests.support.seeds import BASE, OTHER, runs


def found(compare_to="rmsnorm-pre", n=4):
    rows = [*runs("rmsnorm", BASE[:n], range(n)), *runs("dyt", OTHER[:n], range(n))]
    return methods([*rows, *runs("layernorm", BASE[:1], [0])], compare_to)


def test_the_sentence_says_how_far_and_how_sure():
    said = sentences(found()[0])
    assert said.startswith("dyt reaches 105.0 ± 2.7 on the test split, 4.2 % above rmsnorm's 100.8")
    p = stats.ttest_rel(np.log(OTHER), np.log(BASE)).pvalue
    assert f"paired over 4 seeds, Holm-corrected p = {p:.2g})" in said
    assert "decide little" not in said
    assert "2 seeds decide little" in sentences(found(n=2)[0])
    assert "not told apart from" in sentences(found(n=2)[0])


def test_a_difference_of_more_than_all_has_no_exponent():
    more = runs("dyt", [2.5 * x for x in BASE], range(4))
    said = sentences(methods([*runs("rmsnorm", BASE, range(4)), *more], "rmsnorm-pre")[0])
    assert "(difference +150 % (" in said
    assert "e+02" not in said


def test_the_best_is_bold_and_one_line_is_one_method():
    made = booktabs(found())
    assert r"\toprule" in made
    assert r"rmsnorm & 0.001 & 4 & \textbf{100.8 $\pm$ 1.7} & baseline &  &  \\" in made
    assert made.count(r"\\") == 4
    assert made.count("textbf") == 1


def test_every_number_stands_by_itself_in_csv():
    rows = {r["method"]: r for r in csv.DictReader(io.StringIO(as_csv(found())))}
    assert [r["seeds"] for r in rows.values()] == ["4", "4", "1"]
    assert float(rows["dyt"]["mean"]) == pytest.approx(105.0)
    assert float(rows["dyt"]["share"]) == pytest.approx(0.0416, abs=1e-3)
    assert (rows["rmsnorm"]["best"], rows["rmsnorm"]["baseline"]) == ("True", "True")
    assert (rows["layernorm"]["sd"], rows["layernorm"]["share"]) == ("nan", "")


def test_without_a_baseline_the_best_is_named_and_how_to_test():
    assert "rmsnorm has the lowest perplexity, 100.8 ± 1.7 (4 seeds" in page(found(None))
    assert "compare_to=NAME" in page(found(None))
    assert methods(runs("rmsnorm", BASE[:1], [0])) == []
