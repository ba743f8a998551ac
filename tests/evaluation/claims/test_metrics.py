"""What a claim compares, from the files of a run."""

import json
import math

import pytest

from normlab.evaluation.claims.metrics import largest, metrics
from normlab.runs.run import Run
from normlab.training.tuning import grown


def run(folder, streams=(), losses=(), **record):
    made = Run(folder)
    made.write("record.json", record)
    lines = [{"step": i, "stream": [{"mean_square": x} for x in s]} for i, s in enumerate(streams)]
    (folder / "diagnostics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    rows = [{"step": i, "valid_loss": loss} for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    return made


def test_growth_is_that_of_the_last_look_from_the_first_block_on(tmp_path):
    made = run(tmp_path, streams=[[1, 1, 1, 1], [0.01, 2.0, 4.0, 16.0]])
    assert metrics["stream_growth"].of(made) == 3.0
    with pytest.raises(ValueError, match="was trained without diagnostics_every"):
        metrics["stream_growth"].of(run(tmp_path))


def test_a_run_has_learned_that_ends_half_a_nat_below_the_loss_of_the_frequencies(tmp_path):
    stable = metrics["largest_stable_rate"].of
    assert stable(run(tmp_path, losses=[7.0, 5.4], unigram_valid_loss=6.0)) == 1
    assert stable(run(tmp_path, losses=[5.4, 5.6], unigram_valid_loss=6.0)) == 0


def test_the_grid_of_the_largest_stable_rate_grows_while_it_is_at_the_edge():
    """By the same rule as that of the lowest loss; a run that diverged is not stable."""
    score = metrics["largest_stable_rate"].score
    tried = grown(lambda rate: score(rate, [], [float(rate < 0.3), None]), [0.04, 0.08])
    assert list(tried) == [0.04, 0.08, 0.16, 0.32]
    assert list(grown(lambda rate: score(rate, [], [float(rate < 0.03)]), [0.04, 0.08])) == [
        0.04,
        0.08,
    ]


def test_the_largest_of_the_stable_rates_counts_and_none_is_no_number():
    assert largest({0.25: 1.0, 0.5: 1.0, 1.0: 0.0, 2.0: None}) == -1.0
    assert math.isnan(largest({0.5: 0.0}))
