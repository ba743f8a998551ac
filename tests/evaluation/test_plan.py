"""Plans: the search against damages that are known, and the whole verb on a model that is loud."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from normlab.commands.plan import one_plan
from normlab.evaluation.perplexity import score_columns
from normlab.evaluation.plan import PlanConfig, fewest
from normlab.evaluation.protocols import protocols
from normlab.results import RecordFile
from normlab.results.plan import Rise
from tests.support.scored_windows import BATCH, LENGTH, HalfReference, expected, loud
from tests.support.transformer_reference import Reference
from tests.support.unscored import CORPUS, TEXTS, made_run, untrained

SITES = [f"blocks.{i}.mlp.norm_in" for i in range(9)]


class Known:
    """A search in which every narrow site adds its own damage."""

    def __init__(self, damage, base=0.0):
        self.damage, self.base, self.asked = damage, base, []

    def __call__(self, kept):
        self.asked.append(set(kept))
        total = self.base + sum(d for s, d in zip(SITES, self.damage, strict=True) if s not in kept)
        return Rise(total, abs(total))


def found(search):
    """The plan for a budget of 0.1 %."""
    return fewest(SITES, search, lambda: each_alone(search), 1e-3)


def each_alone(search):
    return {site: search([s for s in SITES if s != site]) for site in SITES}


def test_no_site_is_kept_where_none_does_harm():
    search = Known([1e-5] * 9)
    assert found(search) == ([], {})
    assert search.asked == [set()]


def test_all_are_named_where_even_that_does_not_help():
    search = Known([1.0] * 9, base=0.1)
    assert found(search) == (SITES, {})
    assert len(search.asked) == 2


@pytest.mark.parametrize("seed", range(20))
def test_damages_that_add_up_are_held_by_the_fewest(seed):
    """Of harms that add up, the worst are the fewest; those of no effect are never kept."""
    rng = np.random.default_rng(seed)
    damage = rng.permutation([math.inf, 0.5, 0.3, 2e-4, 2e-4, 2e-4, 2e-4, 1e-9, 1e-9])
    search = Known(damage)
    kept, alone = found(search)
    assert {s for s, d in zip(SITES, damage, strict=True) if d > 1e-3} == set(kept)
    assert kept == [site for site in SITES if site in kept]
    assert [alone[site].share for site in SITES] == pytest.approx(list(damage))
    assert search(kept).within(1e-3)
    measured = [asked for asked in search.asked if len(asked) < len(SITES) - 1]
    assert len(measured) < len(SITES)  # what is over the budget by what sites do alone isn't


def test_what_turns_out_needless_is_given_back():
    """Two sites do harm together only; a third moves tokens most, and perplexity not at all."""
    together, decoy = {SITES[2], SITES[5]}, SITES[7]

    class Together(Known):
        def __call__(self, kept):
            narrow = set(SITES) - set(kept)
            alone = {decoy: 0.2, SITES[2]: 0.1, SITES[5]: 0.1} if len(narrow) == 1 else {}
            return Rise(float(together <= narrow), sum(alone.get(site, 0) for site in narrow))

    assert found(Together([0.0] * 9))[0] == [SITES[2]]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"budget": 0.0}, "budget = 0: expected a share > 0, such as 0.001"),
        ({"search_windows": 0}, "search_windows = 0"),
        ({"keep_fp32": ("norm_final",)}, "a plan chooses these sites"),
        ({"precision": ("fp16/norm_final",)}, "a plan chooses these sites"),
        ({"precision": ("fp32",)}, "expected a narrow one, such as fp16"),
    ],
)
def test_what_a_plan_can_not_be_made_of_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        PlanConfig(**fields)


class Interrupted:
    """Passes, of which one is interrupted once after some."""

    def __init__(self, after):
        self.after, self.asked = after, []

    def __call__(self, model, windows, columns, *, batch):
        if len(self.asked) == self.after:
            self.after = None
            raise KeyboardInterrupt
        (column,) = columns
        kept = column.keep_fp32
        self.asked.append(kept and (len(windows), *(site for site in kept if kept[site])))
        return score_columns(model, windows, columns, batch=batch)


@pytest.mark.system
def test_a_plan_of_a_loud_model_is_the_fewest_by_float64_and_is_told(tmp_path, monkeypatch, capsys):
    run, out, half = made_run(tmp_path / "w", tokenizer="word"), tmp_path / "out", "fp16:pairwise"
    lm = untrained(run.directory)
    model = loud(lm.model, 60.0)
    monkeypatch.setattr("normlab.evaluation.texts.load_corpus", lambda data: CORPUS)
    monkeypatch.setattr(
        "normlab.evaluation.targets.load", lambda *_: dataclasses.replace(lm, model=model)
    )
    told = {"window": LENGTH + 1, "max_windows": 8, "batch": BATCH, "out": str(out)}
    told |= {"search_windows": 4}
    asked = PlanConfig(run=str(run.directory), precision=(half,), budget=0.01, **told)
    cut = Interrupted(after=4)
    monkeypatch.setattr("normlab.evaluation.search.score_columns", cut)
    with pytest.raises(KeyboardInterrupt):
        one_plan(asked)
    one_plan(asked)
    (found,) = json.loads((out / "plan.json").read_text())
    kept = found["keep_fp32"]
    passes = len(set(cut.asked) - {None})
    assert len(cut.asked) == passes + 2  # of what was made before the interruption but fp32 nothing
    assert passes == len(json.loads((out / "search.json").read_text())) > len(found["sites"])
    assert (found["chosen"], found["column"], found["modules"]) == (True, half, [])
    assert f"{len(kept)} of {len(found['sites'])} norms stay in float32" in capsys.readouterr().out
    read = protocols["word"].windows(TEXTS["valid"], lm.tokenizer, LENGTH + 1, 4)

    def share(sites):
        """How far perplexity is from float64 with these sites kept."""
        nll, _ = expected(HalfReference(model, "pairwise", kept=sites), read)
        exact, _ = expected(Reference(model), read)
        return abs(math.expm1((nll.sum() - exact.sum()) / read.counts.sum()))

    assert share(kept) <= 0.01
    fewer = itertools.combinations(found["sites"], len(kept) - 1)
    assert all(share(sites) > 0.01 for sites in fewer)
    records = {r.precision: r for r in RecordFile(out / "records.jsonl").read()}
    column = "/".join([half, *kept])
    assert set(records) == {"fp32", half, column}
    assert found["after"]["perplexity"] == records[column].result.perplexity
    assert abs(records[column].comparison.delta) < abs(records[half].comparison.delta) / 10
