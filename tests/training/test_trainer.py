"""Training: it learns, it goes on where it stopped, and it tells what happened."""

import json
import math

import jax
import pytest
from flax import nnx

import normlab.run
from normlab.checkpoint import Checkpoints
from normlab.config import to_dict
from normlab.data import load_tokens
from normlab.model import placements
from normlab.norms import norms
from tests.conftest import same_trees
from tests.support.runs import tiny_config
from train.config import TrainConfig
from train.identity import identity
from train.loop import Trainer, train, validation_windows
from train.step import make_validate
from train.tracking import PACKAGES


def last(run, config):
    """Parameters and optimizer state of a run's newest checkpoint."""
    like = Trainer(config, load_tokens(config.data), run)
    with Checkpoints(run["checkpoints"]) as checkpoints:
        step = checkpoints.latest()
        return step, checkpoints.load(step, params=like.params, optimizer=like.state)


def same_ends(a, b, config):
    (step_a, trees_a), (step_b, trees_b) = last(a, config), last(b, config)
    return step_a == step_b == config.steps and same_trees(trees_a, trees_b)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run left alone."""
    return train(tiny_config(tmp_path_factory.mktemp("runs")), asked=["steps=12"])


def test_a_run_directory_holds_everything(finished):
    record, config = finished.record, finished.read("config.yaml")
    assert finished.read("asked.yaml") == ["steps=12"]
    assert config["model"]["width"] == 32
    assert config["norm"]["eps"] == 1e-5  # a default, resolved
    assert record["state"] == "finished"
    assert record["steps"] == 12
    assert record["tokens_seen"] == 12 * 4 * 32
    sizes = record["groups"]
    assert sizes["decay"]["elements"] + sizes["no_decay"]["elements"] == record["parameters"]
    papers = finished.read("provenance.json")
    assert {"text", "tokenizer"} <= set(papers)
    assert papers["corpus"]["name"] == "embedded"
    (session,) = papers["sessions"]
    assert session["from_step"] == 0
    assert {"normlab", "code", "source", "python", "packages", "device"} <= set(session)
    rows = finished.metrics
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in rows if "valid_loss" in r] == [0, 4, 8, 12]
    assert record["best_valid_loss"] == min(r["valid_loss"] for r in rows if "valid_loss" in r)


def test_the_loaded_model_is_the_best_one(finished):
    loaded = normlab.run.load(finished.directory)
    config = tiny_config(finished.directory)
    tokens = load_tokens(config.data).split("valid")
    inputs, targets = validation_windows(tokens, config)
    graphdef, params = nnx.split(loaded.model)
    loss = make_validate(graphdef)(params, inputs, targets) / targets.size
    assert float(loss) == pytest.approx(finished.record["best_valid_loss"], rel=1e-6)
    assert loaded.facts["step"] == finished.record["best_step"]
    assert loaded.tokenizer.vocab_size == 300


@pytest.mark.parametrize(
    "stop",
    [pytest.param(1, marks=pytest.mark.system), 4, pytest.param(7, marks=pytest.mark.system)],
)
def test_stopping_and_going_on_gives_the_same_bits(finished, tmp_path, stop):
    config = tiny_config(tmp_path)
    run = train(config, stop_after=stop)
    assert not run.ended
    run = train(config)
    assert run.record["state"] == "finished"
    assert same_ends(run, finished, config)
    for a, b in zip(run.metrics, finished.metrics, strict=True):
        timing = {"seconds", "tokens_per_second"}
        assert {k: v for k, v in a.items() if k not in timing} == {
            k: v for k, v in b.items() if k not in timing
        }


@pytest.mark.system
def test_dropout_too_goes_on_with_the_same_bits(tmp_path):
    model = {"layers": 1, "width": 16, "heads": 1, "max_length": 64, "dropout": 0.3}
    alone = train(tiny_config(tmp_path / "a", model=model, steps=6))
    config = tiny_config(tmp_path / "b", model=model, steps=6)
    train(config, stop_after=5)
    assert same_ends(train(config), alone, config)


def test_a_finished_run_is_not_run_again(finished, capsys, monkeypatch):
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")  # which it doesn't need any more
    before = finished["record.json"].stat().st_mtime_ns
    again = train(tiny_config(finished.directory.parent, tracking=["wandb"]))
    assert again.directory == finished.directory
    assert finished["record.json"].stat().st_mtime_ns == before
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"steps": 13}, "steps = 12 there, 13 here"), ({"norm": {"type": "none"}}, "norm.type = ")],
)
def test_another_config_in_the_same_directory_is_refused(finished, tmp_path, fields, message):
    with pytest.raises(ValueError, match=f"another config .{message}"):
        train(tiny_config("unused", run=str(finished.directory), **fields))
    config = tiny_config(tmp_path)
    run = train(config, stop_after=1)
    with pytest.raises(ValueError, match=f"another config .{message}"):
        train(tiny_config("unused", run=str(run.directory), **fields))


def test_a_run_made_before_a_field_was_there_goes_on(tmp_path):
    config = tiny_config(tmp_path)
    run = train(config, stop_after=1)
    older = run.read("config.yaml")
    for field in ("accumulate", "compute", "mesh"):
        del older[field]
    run.write("config.yaml", older)
    assert train(config).record["state"] == "finished"


def test_a_kill_while_the_directory_is_being_made_leaves_nothing_that_stops_the_next_try(tmp_path):
    config = tiny_config(tmp_path)
    run = train(config, stop_after=1)
    for name in ("record.json", "provenance.json"):
        run[name].unlink()
    (run["tokenizer"] / "tokenizer.json").unlink(missing_ok=True)
    assert train(config).record["state"] == "finished"


def test_a_text_that_changed_under_a_run_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    run = train(config, stop_after=1)
    run.write("provenance.json", run.read("provenance.json") | {"text": "0" * 64})
    with pytest.raises(ValueError, match="the text has changed since"):
        train(config)


def test_a_half_line_at_the_end_of_the_log_is_dropped(tmp_path):
    config = tiny_config(tmp_path)
    run = train(config, stop_after=5)
    with open(run["metrics.jsonl"], "a") as file:
        file.write('{"step": 6, "lo')
    train(config)
    steps = [json.loads(line)["step"] for line in run["metrics.jsonl"].read_text().splitlines()]
    assert sorted(steps) == steps
    assert steps.count(5) == 1


def test_divergence_is_a_result_and_keeps_the_last_good_checkpoint(tmp_path):
    optimizer = {"lr": 1e30, "warmup": 5, "clip": 1e30}
    run = train(tiny_config(tmp_path, optimizer=optimizer))
    assert run.record["state"] == "diverged"
    assert run.metrics[-1]["diverged"] is True
    assert run.record["steps"] == run.metrics[-1]["step"]
    assert math.isfinite(run.record["train_loss"])
    loaded = normlab.run.load(run.directory)
    assert all(bool((abs(x) < 1e9).all()) for x in jax.tree.leaves(nnx.state(loaded.model)))


@pytest.mark.system
def test_a_rate_that_is_too_high_stops_early(tmp_path):
    optimizer = {"lr": 3.0, "warmup": 0, "clip": 1e9}
    run = train(tiny_config(tmp_path, optimizer=optimizer, steps=60, eval_every=1, patience=2))
    assert run.record["state"] == "stopped early"
    rows = [r["valid_loss"] for r in run.metrics if "valid_loss" in r]
    assert len(rows) - 1 - rows.index(min(rows)) == 2
    assert run.record["best_step"] < run.record["steps"] < 60
    steps = run.record["steps"]
    run.write("record.json", {"state": "running"})  # as if killed before the record was written
    config = tiny_config(tmp_path, optimizer=optimizer, steps=60, eval_every=1, patience=2)
    assert train(config).record["steps"] == steps


@pytest.mark.system
@pytest.mark.parametrize(
    ("norm", "placement"),
    [(norm, "pre") for norm in norms if norms[norm].differentiable]
    + [("rmsnorm", row) for row in placements if row != "pre"],
)
def test_every_norm_and_every_placement_learns(norm, placement, tmp_path):
    run = train(
        tiny_config(
            tmp_path, norm={"type": norm}, placement={"type": placement}, steps=120, eval_every=40
        )
    )
    valid = [r["valid_loss"] for r in run.metrics if "valid_loss" in r]
    assert valid[-1] < valid[0] - 1.0
    assert valid[0] == pytest.approx(math.log(300), abs=1.0)


@pytest.mark.parametrize(
    ("norm", "placement"), [pytest.param("none", "pre", marks=pytest.mark.system), ("dyt", "post")]
)
def test_norms_without_a_statistic_learn(norm, placement, tmp_path):
    placed = {"norm": {"type": norm}, "placement": {"type": placement}}
    run = train(tiny_config(tmp_path, steps=60, eval_every=60, **placed))
    valid = [r["valid_loss"] for r in run.metrics if "valid_loss" in r]
    assert valid[-1] < valid[0] - 0.5


def test_what_a_number_depends_on_is_in_the_name_of_its_run():
    def told(corpus="embedded", runs="runs", **fields):
        return identity(to_dict(tiny_config(runs, **fields)), corpus)

    assert told() == told(runs="elsewhere", log_every=7)
    assert told() != told(corpus="wikitext2")
    assert told() != told(seed=1)
    assert told() != told(norm={"type": "rmsnorm", "eps": 1e-6})


@pytest.mark.system
@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 8), ("batch", 2), ("window", 16), ("seed", 1), ("eval_every", 6),
     ("eval_windows", 8), ("log_every", 5), ("patience", 1),
     ("compute", {"statistics": "fp8_e4m3"})],
)  # fmt: skip
def test_every_field_of_a_run_changes_what_is_logged(tmp_path, field, value):
    worse = {"lr": 3.0, "warmup": 0, "clip": 1e9}  # nothing gets better, so that patience ends
    base = {"optimizer": worse} if field == "patience" else {}
    changed = train(tiny_config(tmp_path / "changed", **base, **{field: value}))
    assert told(changed) != told(train(tiny_config(tmp_path / "base", **base)))


def told(run):
    """How a run ended and what it logged, but for times."""
    rows = [{k: v for k, v in r.items() if not k.startswith(("sec", "tok"))} for r in run.metrics]
    return run.record["state"], rows


def test_a_run_lies_where_it_is_told_to(finished, tmp_path):
    assert finished.directory.parent.name.startswith("runs")
    config = tiny_config(tmp_path, run=str(tmp_path / "here"))
    assert train(config, stop_after=1).directory == tmp_path / "here"


CUDNN = {"attention": "cudnn", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 65}, "window = 65 tokens is longer than model.max_length = 64"),
        ({"steps": 0}, "steps = 0: expected a whole number ≥ 1"),
        ({"steps": 2}, "optimizer.warmup = 2 steps leaves none of steps = 2"),
        ({"patience": 0}, "patience = 0: expected null or a number ≥ 1"),
        ({"seed": -1}, "seed = -1"),
        ({"norm": {"type": "i-bert"}}, r"norm=i-bert rounds.*transform=\[i-bert\]"),
        ({"norm": {"type": "dyadic"}}, "norm=dyadic rounds, and no gradient comes through it"),
        ({"norm": {"type": "ai-layernorm"}}, "norm=ai-layernorm rounds"),
        ({"model": {"causal": False}}, "model.causal = False .*: expected true"),
        ({"model": {"attention_softcap": 5.0}, "compute": CUDNN}, "has no model.attention_softcap"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config("runs", **fields)


def test_the_defaults_are_a_config():
    assert TrainConfig().norm.type == "rmsnorm"
