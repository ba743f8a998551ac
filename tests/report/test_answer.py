"""The answer and the labels: what is said of methods, and what isn't."""

import pytest

from normlab.report.answer import answers
from normlab.report.sources import read
from tests.support.report_sources import record, run_record, write_records, write_run


def answered(folder):
    """The answers of a directory."""
    sources = read([folder])
    return answers(sources, sources.labels)


def write(folder, **perplexities):
    """A run and a record for each norm and seed."""
    for norm, values in perplexities.items():
        for seed, value in enumerate(values):
            run = write_run(folder, f"{norm}{seed}", norm, seed=seed)
            write_records(folder, run_record(run, perplexity=value))


@pytest.mark.parametrize(
    ("perplexities", "said"),
    [
        ({"a": [20, 21], "b": [20.4, 21.5]}, "the difference is not significant (Welch's t test,"),
        ({"a": [20, 20.01], "b": [30, 30.01]}, "the difference is significant (Welch's t test, p"),
        ({"a": [20.0], "b": [30.0]}, "a has the lowest test perplexity: 20.000. No method has two "
         "seeds that ended well, so how much of a difference is chance is unknown."),
        ({"a": [20, 21], "b": [30.0]}, "No other method has two seeds that ended well to compare"),
        ({"a": [20, 21], "b": [30, 31], "c": [10.0]},
         "Lower, but with too few seeds that ended well: c (10.000)."),
        ({"a": [20, 21], "b": [30, 31], "c": [40, 41]}, ", not corrected for 3 methods)."),
        ({"a": [20, 21]}, "a pre has a test perplexity of 20.50 ± 0.71 (mean ± standard"),
        ({"a": [20, 20], "b": [20, 20]}, "can't be tested, as the seeds have no spread"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Precision loss")
def test_what_is_said_of_methods(tmp_path, perplexities, said):
    write(tmp_path, **perplexities)
    (answer,) = answered(tmp_path)
    assert said in answer.text


def test_a_method_with_a_seed_that_diverged_is_not_the_best(tmp_path):
    write(tmp_path, a=[10.0, 11.0], b=[20.0, 21.0], c=[30.0, 31.0])
    bad = write_run(tmp_path, "a2", "a", seed=2, state="diverged")
    write_records(tmp_path, run_record(bad, status="diverged"))
    (answer,) = answered(tmp_path)
    assert answer.text.startswith("b has the lowest")
    assert answer.table.rows[-1][1].text.endswith("; 1 diverged")


def test_without_an_evaluation_validation_is_what_counts(tmp_path):
    for seed in (0, 1):
        for norm, loss in (("a", 2.0), ("b", 2.5)):
            write_run(tmp_path, f"{norm}{seed}", norm, seed=seed, loss=loss + seed / 100)
    (answer,) = answered(tmp_path)
    assert answer.text.startswith("a has the lowest validation perplexity: 7.426 ± 0.053")
    assert answer.table.title == "Best perplexity in validation on A text; none evaluated."


def test_runs_without_a_result_have_no_answer_but_say_so(tmp_path):
    write_run(tmp_path, "a", state="diverged", loss=float("nan"))
    (answer,) = answered(tmp_path)
    assert answer.text == "No method has a run that ended well."


def test_models_that_are_no_runs_are_summarized(tmp_path):
    write_records(tmp_path, record("m"), record("m", "fp16", 900.0, overflowed=7))
    (answer,) = answered(tmp_path)
    assert answer.text == (
        "m has a perplexity of 20.000 in fp32. fp16 takes m from 20.000 to 900.000 (7 rows "
        "overflow)."
    )
