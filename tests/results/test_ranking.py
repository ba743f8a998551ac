"""Methods at several sizes: points at their best rates, and where their ranking flips."""

import math

import pytest

from normlab.results.ranking import by_size, flips


def run(norm, width, parameters, loss, lr=1e-3, seed=0, state="finished"):
    """A size is a width: DyT has more parameters, and a wide model's batch fewer parts."""
    config = {
        "norm.type": norm, "placement.type": "pre", "model.width": width, "optimizer.lr": lr,
        "seed": seed, "parts": 128 // width,
    }  # fmt: skip
    parameters += 2 * (norm == "dyt")
    record = {"parameters": parameters, "tokens_seen": 1000, "best_valid_loss": loss}
    return config, record | {"state": state}


RUNS = [
    run("rmsnorm", 32, 100, 3.0), run("rmsnorm", 32, 100, 3.2, seed=1),
    run("rmsnorm", 32, 100, 2.0, lr=1e-2), run("rmsnorm", 32, 100, 9.0, lr=1e-2, seed=1),
    run("rmsnorm", 64, 400, 2.0), run("rmsnorm", 64, 400, 2.2, seed=1),
    run("dyt", 32, 100, 2.9), run("dyt", 32, 100, 2.7, seed=1),
    run("dyt", 64, 400, 2.4), run("dyt", 64, 400, None, seed=1, state="diverged"),
]  # fmt: skip


def test_a_point_is_the_best_rate_by_its_mean_and_its_compute_is_6nd():
    found = by_size(RUNS)
    assert list(found) == ["rmsnorm", "dyt"]
    small, large = found["rmsnorm"]
    assert (small.losses, small.flops, small.mean) == ((3.0, 3.2), 6e5, pytest.approx(3.1))
    assert (large.parameters, large.flops) == (400, 2.4e6)
    assert found["dyt"][1].losses == (2.4, math.inf)


def test_where_two_methods_change_places_is_said():
    (said,) = flips(by_size(RUNS))
    assert said.startswith("dyt is ahead at 100 parameters, rmsnorm at 400: means over 2 seed(s)")
    same = [r for r in RUNS if r[0]["norm.type"] == "rmsnorm"]
    assert flips(by_size(same)) == []
    ahead = [*same, run("dyt", 32, 100, 9.0), run("dyt", 64, 400, 9.0)]
    assert flips(by_size(ahead)) == ["The ranking is the same at every size."]


def test_runs_of_one_size_have_no_points():
    assert by_size(r for r in RUNS if r[0]["model.width"] == 32) == {}
