"""Removal: frozen statistics are linear and fold away; the loop that removes them one by one."""

import csv
import dataclasses
import json
import math
import types

import jax
import numpy as np
import pytest

from normlab import pretrained
from normlab.commands.remove import COLUMNS, one_removal
from normlab.config import build
from normlab.data import DataConfig
from normlab.loss import token_nll
from normlab.model.language_model import LanguageModel
from normlab.norms import all_norms, norms
from normlab.runs.run import load
from normlab.training.removal import (
    RemoveConfig,
    Tuner,
    _folded,
    remove,
    trained_text,
)
from normlab.training.trainer import train
from normlab.transforms import DoesNotApply, apply
from normlab.transforms.remove import Frozen, average_factors, freeze, removable
from tests.conftest import forward, tiny_model
from tests.support.passes import TOKENS
from tests.support.runs import tiny_config
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder
from tests.support.transform_models import bits, double, same
from tests.support.transformer_reference import Reference


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_a_frozen_norm_folds_away(norm):
    """Centring too: with every norm frozen and folded, no norm is left and no logit has moved."""
    with jax.enable_x64(True):
        model = double(norm, tied=False)
        before = bits(model)
        every = freeze(model, average_factors(model, TOKENS))
        assert bits(model) == before
        assert not same(model, every, 1e-3)
        folded = apply(every, "fold")
        assert same(every, folded)
    assert {type(n) for n in all_norms(every)} == {Frozen}
    assert all_norms(folded) == []


def test_a_stored_one_plus_w_is_frozen_as_it_acts():
    with jax.enable_x64(True):
        model = double("rmsnorm", norm_fields={"one_plus": True})
        site = "blocks.0.mlp.norm_in"
        made = freeze(model, {site: 0.5}).blocks[0].mlp.norm_in
        old = model.blocks[0].mlp.norm_in
        x = np.random.default_rng(0).normal(size=(3, old.width))
        np.testing.assert_allclose(made(x, None), 0.5 * x * (1 + old.weight[...]), rtol=1e-14)


def test_between_nonlinearities_a_model_without_statistics_is_linear():
    """The input norm of a frozen branch doubles with its input; the real one doesn't."""
    model = tiny_model("layernorm", norm_fields={"bias": False})
    frozen = freeze(model, {"norm_final": 2.0}).norm_final
    frozen.weight[...] = np.ones(32, np.float32)
    x = np.float32(np.random.default_rng(0).normal(size=(4, 32)))
    np.testing.assert_allclose(frozen(2 * x, None), 2 * frozen(x, None), rtol=1e-6)
    np.testing.assert_allclose(frozen(x, None), 2 * (x - x.mean(-1, keepdims=True)), atol=1e-6)


def test_factors_are_the_averages_of_one_over_rms():
    model = tiny_model("layernorm", layers=1)
    factors, reference = average_factors(model, TOKENS), Reference(model)
    reference.logits(TOKENS)
    assert factors.keys() == reference.inputs.keys()
    for site, x in reference.inputs.items():
        by_hand = (1 / np.sqrt(x.var(-1) + 1e-5)).mean()
        assert factors[site] == pytest.approx(by_hand, rel=1e-5)


def test_one_site_at_a_time_mlps_first_and_the_final_norm_last():
    model = tiny_model("layernorm", layers=11)
    order = removable(model)
    assert order[:3] == [f"blocks.{i}.mlp.norm_in" for i in range(3)]
    assert order[10:12] == ["blocks.10.mlp.norm_in", "blocks.0.attention.norm_in"]
    assert order[-1] == "norm_final"
    once = freeze(model, {order[0]: 1.5})
    assert removable(once) == order[1:]
    assert [n.site.name for n in all_norms(once) if isinstance(n, Frozen)] == order[:1]
    assert once.blocks[0].mlp.norm_in.config.factor == 1.5


def test_what_has_no_statistic_to_freeze_is_refused():
    model = tiny_model("layernorm")
    with pytest.raises(DoesNotApply, match="no LayerNorm or RMSNorm at 'blocks.7.mlp.norm_in'"):
        freeze(model, {"blocks.7.mlp.norm_in": 1.0})
    with pytest.raises(DoesNotApply, match="there are \\[\\]"):
        freeze(tiny_model("dyt"), {"norm_final": 1.0})
    assert "frozen" not in norms


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    fields = {"layers": 1, "width": 16, "heads": 2, "max_length": 64, "tied": False}
    norm = {"type": "layernorm"}
    config = tiny_config(tmp_path_factory.mktemp("runs"), model=fields, norm=norm, steps=4)
    return train(config).directory


@pytest.mark.system
def test_the_loop_removes_every_norm_and_writes_a_table(run, tmp_path):
    config = RemoveConfig(run=str(run), steps=3, eval_windows=4, out=str(tmp_path))
    one_removal(config, ())
    rows = list(csv.DictReader((tmp_path / "removal.csv").read_text().splitlines()))
    sites = ["blocks.0.mlp.norm_in", "blocks.0.attention.norm_in", "norm_final"]
    assert [row["site"] for row in rows] == ["start", *sites, "folded"]
    assert set(rows[0]) == set(COLUMNS)
    for row in rows[1:4]:
        assert float(row["factor"]) > 0
        assert row["after freezing"] != row["after tuning"]
    tuned, folded = (float(r["after tuning"]) for r in rows[-2:])
    assert folded == pytest.approx(tuned, rel=1e-5)
    assert (tmp_path / "removal.md").read_text().count("\n") == len(rows) + 2
    asked = json.loads((tmp_path / "removal.json").read_text())
    assert (asked["run"], asked["steps"], asked["control"]) == (str(run), 3, False)
    control = list(remove(dataclasses.replace(config, control=True, steps=0)))
    assert [line.site for line in control] == ["start", *sites]
    assert all(line.factor is None for line in control)
    assert control[1].frozen == control[0].tuned  # nothing was frozen


@pytest.mark.parametrize("placement", ["post", "deepnorm", "reordered"])
def test_where_nothing_folds_there_is_no_line_and_it_says_why(placement, capsys):
    model = tiny_model("layernorm", placement, layers=1)
    frozen = freeze(model, average_factors(model, TOKENS))
    assert list(_folded(types.SimpleNamespace(model=frozen, become=None), "mine")) == []
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(
        "mine: no line for the folded model. fold: no weight, bias or linear norm"
    )


def test_perplexities_are_of_the_statistics_that_the_run_has(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "normlab.training.removal.make_validate", lambda _, *more: asked.extend(more)
    )
    tuner = object.__new__(Tuner)
    tuner.run = tiny_config("runs", compute={"statistics": "fp8_e4m3"})
    tuner.become(tiny_model())
    assert asked == [tuner.run.compute.precision]


@pytest.mark.system
def test_what_was_removed_before_a_kill_is_written(run, tmp_path, monkeypatch):
    def killed(self, stretch):
        raise KeyboardInterrupt

    monkeypatch.setattr("normlab.training.removal.Tuner.tune", killed)
    with pytest.raises(KeyboardInterrupt):
        one_removal(RemoveConfig(run=str(run), eval_windows=4, out=str(tmp_path)), ())
    (row,) = csv.DictReader((tmp_path / "removal.csv").read_text().splitlines())
    assert row["site"] == "start"


@pytest.mark.system
def test_a_run_is_tuned_in_its_own_tokens_on_its_own_text(run, tmp_path, monkeypatch):
    lm = load(run)
    data = build(DataConfig, lm.facts["config"]["data"])
    monkeypatch.setattr("normlab.data.tokens._tokenizer", None)  # no other one is trained
    assert trained_text(lm, data).tokenizer.hash == lm.tokenizer.hash
    lm.facts["training_provenance"]["text"] = "0" * 64
    with pytest.raises(ValueError, match="another text there"):
        trained_text(lm, data)


def test_a_model_without_statistics_is_refused(monkeypatch):
    model = LanguageModel("m", tiny_model("dyt"), None)
    monkeypatch.setattr("normlab.training.removal.load", lambda directory: model)
    with pytest.raises(DoesNotApply, match="m has norm 'dyt': expected LayerNorm or RMSNorm"):
        next(remove(RemoveConfig(run="somewhere")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": -1}, "steps = -1"),
        ({"lr": 0.0}, "lr = 0.0: expected a finite number > 0"),
        ({"lr": math.inf}, "lr = inf: expected a finite number > 0"),
        ({"batch": 0}, "batch = 0: expected a whole number"),
        ({"eval_windows": 0}, "eval_windows = 0"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RemoveConfig(**fields)


def test_something_must_be_named():
    with pytest.raises(ValueError, match="expected run=DIR"):
        next(remove(RemoveConfig()))


@pytest.mark.system
def test_a_pretrained_model_loses_its_norms_too(tmp_path):
    """On any text: the first line is its own loss there, and every site has a line."""
    spec = write_folder(tmp_path / "llama", CONFIGS["llama"], tensors("llama"))
    text = DataConfig(corpus="embedded")
    config = RemoveConfig(pretrained=spec, data=text, window=16, batch=2, steps=1, eval_windows=4)
    lines = list(remove(config))
    lm = pretrained.load(spec)
    tokens = trained_text(lm, text).split("valid")
    windows = np.asarray(tokens[:65])
    logits = forward(lm.model, windows[:64].reshape(4, 16))
    nll = float(token_nll(logits, windows[1:].reshape(4, 16)).mean())
    assert lines[0].frozen == pytest.approx(math.exp(nll), rel=1e-4)
    assert [line.site for line in lines[1:-1]] == removable(lm.model)
    assert lines[-1].site == "folded"


@pytest.mark.parametrize("named", [{}, {"run": "a", "pretrained": "b"}])
def test_one_model_is_to_be_named(named):
    with pytest.raises(ValueError, match=r"expected run=DIR, or pretrained=NAME"):
        next(remove(RemoveConfig(**named)))
