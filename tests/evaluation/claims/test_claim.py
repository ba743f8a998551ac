"""Claims: every committed one can be run; what is none is refused with the nearest name."""

import pytest
from hydra.errors import HydraException

from normlab.commands.claims import CLAIMS, check, load, names
from normlab.evaluation.claims import metrics
from normlab.evaluation.claims.outcome import read
from tests.support.claims import claim


@pytest.mark.system
@pytest.mark.parametrize("name", names())
def test_every_committed_claim_composes_to_configs_that_there_are(name):
    found = load(CLAIMS / f"{name}.yaml")
    check(found)
    assert found.name == name
    assert metrics[found.metric].__doc__
    for field in (found.source, found.says, found.limits):
        assert len(field) > 10


@pytest.mark.parametrize("file", sorted(CLAIMS.glob("*.json")), ids=lambda file: file.stem)
def test_a_committed_record_is_of_the_claim_beside_it_and_has_all_its_pairs(file):
    made = read(load(file.with_suffix(".yaml")), [CLAIMS])
    assert made is not None, f"{file.stem} has changed since: --run it again"
    pairs = {arm: {t.pair for t in made.trials if t.arm == arm} for arm in made.claim.arms}
    assert len(set(map(frozenset, pairs.values()))) == 1


def test_what_is_expected_becomes_a_contrast_of_arms():
    four = {name: f"seed_{name}" for name in ("a", "b", "c", "d")}
    own = {"arms": four, "expects": "a - b > c - d"}
    assert claim(**own).contrast == {"a": 1, "b": -1, "c": -1, "d": 1}
    assert claim(**own | {"expects": "a + d < b + c"}).contrast == {
        "a": -1,
        "b": 1,
        "c": 1,
        "d": -1,
    }
    assert claim(expects="a = b").contrast == {"a": 1, "b": -1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metric": "valid_los"}, "unknown metric 'valid_los'. Did you mean 'valid_loss'"),
        ({"expects": "a < c"}, "unknown arm 'c'"),
        ({"expects": "a is better"}, "expected ARM < ARM, ARM > ARM, ARM = ARM"),
        ({"expects": "a - b > a"}, "says nothing of the arm ['a']"),
        ({"arms": {"a": "", "b": "", "c": ""}, "expects": "a < b"}, "nothing of the arm ['c']"),
        (
            {"arms": {"a": "", "b": "", "c": ""}, "expects": "a + b < c"},
            "as many arms added on one",
        ),
        ({"margin": 0}, "margin = 0: expected the smallest difference that counts, > 0"),
        ({"limits": " "}, "limits is empty: expected a sentence"),
        ({"seeds": [0]}, "seeds = [0]: expected two or more"),
        ({"seeds": [1, 1]}, "seeds = [1, 1]: expected two or more"),
        ({"rates": []}, "rates = []: expected 1 or more, all > 0"),
        ({"metric": "largest_stable_rate"}, "rates = [0.001]: expected 2 or more"),
        ({"metric": "window_nll"}, "of an evaluation, whose windows are compared: expected no"),
        ({"common": "seed=3"}, "seed=3: expected it in the claim's rates, or seeds"),
        ({"arms": {"a": "optimizer.lr=1", "b": ""}}, "arm a: optimizer.lr=1: expected it in"),
        ({"arm": {}}, "unknown key of the config 'arm'. Did you mean 'arms'"),
        ({"arms": {"a": 1, "b": ""}}, "arms.a = 1: expected overrides"),
    ],
)
def test_what_is_no_claim_is_refused(changed, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        claim(**changed)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": {"a": "norm=rmsnrom", "b": ""}}, "rmsnrom"),
        ({"common": "stepz=2"}, "stepz"),
        ({"metric": "stream_growth"}, "metric stream_growth needs diagnostics_every=N"),
        ({"arms": {"a": "optimizer=adam", "b": ""}}, "adam"),
    ],
)
def test_what_no_run_can_be_told_is_refused_before_the_first(changed, message):
    with pytest.raises((ValueError, HydraException)) as caught:
        check(claim(**changed))
    assert message in str(caught.value.__cause__ or caught.value)


def test_a_file_that_is_no_claim_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("- a\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: expected fields of a claim"):
        load(file)
    file.write_text("margin: 1e-3\nmetrics: valid_loss\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: unknown key .* 'metrics'. Did you mean"):
        load(file)
