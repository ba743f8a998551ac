"""Training: it learns, it goes on where it stopped, and it tells what happened."""

import math
import signal
import time
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import normlab.runs.run
from normlab.data import load_tokens
from normlab.model import placements
from normlab.norms import norms
from normlab.runs.checkpoint import Checkpoints
from normlab.runs.run import Run
from normlab.training.config import TrainConfig
from normlab.training.metrics import MetricsLog, StepLines
from normlab.training.step import make_validate
from normlab.training.stop import StopRequest
from normlab.training.tracking import PACKAGES
from normlab.training.trainer import train, validation_windows
from tests.support.runs import logged, loop_config, same_ends, scripted, signalled, tiny_config

pytestmark = pytest.mark.system

# --- one run, from its beginning to its end


def test_a_run_directory_holds_everything(alone):
    record, config = alone.record, alone.read("config.yaml")
    assert alone.read("overrides.yaml") == ["steps=12"]
    assert config["model"]["width"] == 32
    assert config["norm"]["eps"] == 1e-5  # a default, resolved
    assert record["state"] == "finished"
    assert record["steps"] == 12
    assert record["tokens_seen"] == 12 * 4 * 32
    sizes = record["groups"]
    assert sizes["decay"]["elements"] + sizes["no_decay"]["elements"] == record["parameters"]
    papers = alone.read("provenance.json")
    assert {"text", "tokenizer"} <= set(papers)
    assert papers["corpus"]["name"] == "embedded"
    (session,) = papers["sessions"]
    assert session["from_step"] == 0
    assert {"normlab", "code", "source", "python", "packages", "device"} <= set(session)
    rows = alone.metrics
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in rows if "valid_loss" in r] == [0, 4, 8, 12]
    assert record["best_valid_loss"] == min(r["valid_loss"] for r in rows if "valid_loss" in r)
    assert record["best_valid_perplexity"] == pytest.approx(math.exp(record["best_valid_loss"]))
    assert record["train_loss"] == [r["loss"] for r in rows if "loss" in r][-1]
    assert record["seconds"] >= rows[-1]["seconds"] > 0
    assert [record[k] for k in ("norm", "placement", "seed")] == ["rmsnorm", "pre", 0]
    assert rows[0]["valid_loss"] == pytest.approx(math.log(300), abs=1.0)
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"] - 0.5
    train_ids, (_, targets) = windows(tiny_config("unused"))
    counts = np.bincount(train_ids, minlength=300) + 1
    unigram = -np.log(counts[targets] / counts.sum()).mean()
    assert record["unigram_valid_loss"] == pytest.approx(unigram, rel=1e-9)
    assert not alone["diagnostics.jsonl"].exists()


def windows(config):
    """The ids of the training split, and the validation windows."""
    tokens = load_tokens(config.data)
    return np.asarray(tokens.split("train")), validation_windows(tokens.split("valid"), config)


def test_the_loaded_model_is_the_best_one(alone):
    loaded = normlab.runs.run.load(alone.directory)
    _, (inputs, targets) = windows(tiny_config("unused"))
    graphdef, params = nnx.split(loaded.model)
    loss = make_validate(graphdef)(params, inputs, targets) / targets.size
    assert float(loss) == pytest.approx(alone.record["best_valid_loss"], rel=1e-6)
    assert loaded.facts["step"] == alone.record["best_step"]
    assert loaded.tokenizer.vocab_size == 300


def test_stopping_and_going_on_gives_the_same_bits(alone, tmp_path):
    """Stopped between two checkpoints, with half a line, by a version without some fields."""
    config = tiny_config("unused", run=str(tmp_path / "here"))
    run = train(config, stop_after=7)
    assert run.directory == tmp_path / "here"
    assert not run.ended
    with run["metrics.jsonl"].open("a") as file:
        file.write('{"step": 8, "lo')
    older = run.read("config.yaml")
    assert older["parts"] == 1
    for field in ("accumulate", "compute", "mesh", "parts"):
        del older[field]
    run.write("config.yaml", older)
    assert train(config).record["state"] == "finished"
    assert [s["from_step"] for s in run.read("provenance.json")["sessions"]] == [0, 4]
    assert same_ends(run, alone, config)
    assert logged(run) == logged(alone)


def test_a_run_goes_on_in_the_parts_that_it_began_with(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("normlab.training.trainer.make_step", lambda *told: asked.append(told[-1]))
    monkeypatch.setattr("normlab.training.trainer.parts_of", lambda *told: told[-1] or 4)
    scripted(monkeypatch)
    config = loop_config(tmp_path)
    run = train(config, stop_after=5)
    assert run.read("config.yaml")["parts"] == 4
    monkeypatch.setattr("normlab.training.trainer.parts_of", lambda *told: told[-1] or 2)
    train(config, stop_after=1)
    train(replace(config, parts=1), stop_after=1)
    assert train(config).ended
    assert asked == [4, 4, 1, 1]


def test_a_finished_run_is_not_run_again(alone, capsys, monkeypatch):
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")  # which it doesn't need any more
    before = alone["record.json"].stat().st_mtime_ns
    again = train(tiny_config(alone.directory.parent, tracking=["wandb"]))
    assert again.directory == alone.directory
    assert alone["record.json"].stat().st_mtime_ns == before
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another config .steps = 12 there, 13 here"):
        train(tiny_config("unused", run=str(alone.directory), steps=13))


# --- the loop, with steps that compute nothing


class Fetched:
    """A device's number that notes when it is fetched."""

    def __init__(self, seen, step):
        self.seen, self.step = seen, step

    def __float__(self):
        self.seen.append(("fetched", self.step))
        return 1.0


def test_a_step_is_under_way_before_the_numbers_of_the_one_before_are_asked_for(
    tmp_path, monkeypatch
):
    seen = []

    def loss(step):
        seen.append(("begun", step))
        return Fetched(seen, step)

    scripted(monkeypatch, loss)
    train(loop_config(tmp_path, steps=5, eval_every=1000))
    begun, fetched = ([(what, i) for i in range(1, 6)] for what in ("begun", "fetched"))
    between = (event for i in range(4) for event in (begun[i + 1], fetched[i]))
    assert seen == [begun[0], *between, fetched[4]]


@pytest.mark.parametrize("where", ["loss", "gradient", "validation"])
def test_divergence_is_a_result_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, where):
    script = {
        "loss": {"loss": lambda step: math.nan if step == 7 else 5.0},
        "gradient": {"gradient": lambda step: math.inf if step == 7 else 1.0},
        "validation": {"valid": [5.0, 4.0, math.inf]},
    }
    scripted(monkeypatch, **script[where])
    run = train(loop_config(tmp_path))
    end = 8 if where == "validation" else 7
    assert run.record["state"] == "diverged"
    assert run.metrics[-1]["step"] == run.record["steps"] == end
    assert run.metrics[-1]["diverged"] is True
    assert run.record["train_loss"] == 5.0
    assert run.record["best_valid_loss"] == (4.0 if where == "validation" else 5.0)
    with Checkpoints(run["checkpoints"]) as checkpoints:
        assert checkpoints.steps() == [4, 0]


def test_a_run_whose_saves_cannot_be_read_back_is_told_before_its_first_step(tmp_path, monkeypatch):
    scripted(monkeypatch, loss=lambda step: pytest.fail("a step was made"))
    with monkeypatch.context() as patch:
        patch.setattr("normlab.runs.checkpoint._digest", lambda _: str(time.monotonic()))
        with pytest.raises(OSError, match=r"can't be read back.*give another run=DIR.*SHA-256"):
            train(loop_config(tmp_path))
    (run,) = map(Run, tmp_path.iterdir())
    assert run.record["state"] == "failed"


@pytest.mark.system
def test_of_equal_validations_the_record_names_the_checkpoint_that_is_kept(tmp_path, monkeypatch):
    scripted(monkeypatch, valid=[5.0, 3.0, 3.0, 4.0, 3.0, 4.0, 4.0])
    run = train(loop_config(tmp_path, eval_every=2))
    assert run.record["best_step"] == 2
    with Checkpoints(run["checkpoints"]) as checkpoints:
        assert checkpoints.best() == 2


@pytest.mark.system
def test_what_gets_no_better_stops_early(tmp_path, monkeypatch):
    scripted(monkeypatch, valid=[5.0, 3.0, 4.0, 2.0, 2.5, 2.5, 1.0])
    config = loop_config(tmp_path, eval_every=1, patience=2)
    run = train(config)
    assert run.record["state"] == "stopped early"
    assert [run.record[k] for k in ("best_step", "best_valid_loss", "steps")] == [3, 2.0, 5]
    run.write("record.json", {"state": "running"})  # as if killed before the record was written
    assert train(config).record["state"] == "stopped early"
    assert run.record["steps"] == 5


@pytest.fixture
def terminal():
    """A closed terminal's signal acts, whatever this process was started with (`nohup`)."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.system
@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    ("number", "step"), [(signal.SIGTERM, 5), (signal.SIGINT, 8), (signal.SIGHUP, 5)]
)
def test_a_signal_saves_leaves_and_the_same_command_goes_on(
    tmp_path, monkeypatch, capsys, number, step
):
    """Between two validations, and at one."""
    scripted(monkeypatch)
    config, before = loop_config(tmp_path), signal.getsignal(number)
    with monkeypatch.context() as patch:
        signalled(patch, step, number)
        with pytest.raises(SystemExit) as left:
            train(config)
    assert left.value.code == 128 + number
    assert f"{signal.Signals(number).name} at step" in capsys.readouterr().out
    assert signal.getsignal(number) is before
    run = train(config)
    assert [r["step"] for r in run.metrics if "loss" in r] == list(range(1, 13))
    saved = run.read("provenance.json")["sessions"][1]["from_step"]
    assert saved == (8 if step == 8 else 6)  # step 6 has begun when step 5 is noted


@pytest.mark.system
def test_a_signal_in_the_last_step_ends_the_run_and_then_the_process(tmp_path, monkeypatch):
    scripted(monkeypatch)
    signalled(monkeypatch, 12, signal.SIGTERM)
    with pytest.raises(SystemExit) as left:  # so that a sweep begins no other run
        train(loop_config(tmp_path))
    assert left.value.code == 128 + signal.SIGTERM
    (run,) = map(Run, tmp_path.iterdir())
    assert run.record["state"] == "finished"
    assert run.record["steps"] == 12


def test_how_often_something_is_logged_and_validated(tmp_path, monkeypatch):
    scripted(monkeypatch, valid=repeat(2.0))
    run = train(loop_config(tmp_path, log_every=5, eval_every=6, eval_windows=11))
    rows = run.metrics
    assert [r["step"] for r in rows if "loss" in r] == [5, 10, 12]
    assert [(r["step"], r["valid_loss"]) for r in rows if "valid_loss" in r] == [
        (0, 2.0), (6, 2.0), (12, 2.0),
    ]  # fmt: skip
    assert rows[-1]["valid_perplexity"] == pytest.approx(math.exp(2.0))


def test_validation_windows_are_the_first_whole_batches(tmp_path):
    tokens = np.arange(100, dtype=np.int32)
    for asked, count in ((None, 8), (7, 4), (8, 8), (3, 3)):
        config = tiny_config(tmp_path, window=11, eval_windows=asked)
        inputs, targets = validation_windows(tokens, config)
        assert inputs.shape == (count, 11)
        np.testing.assert_array_equal(inputs.ravel(), np.arange(count * 11))
        np.testing.assert_array_equal(targets, inputs + 1)
    with pytest.raises(ValueError, match="has 32 tokens, fewer than one window = 32"):
        validation_windows(tokens[:32], tiny_config(tmp_path))


def test_speed_leaves_out_what_no_step_spent_and_time_goes_on_with_a_run(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def after(seconds, call, *arguments, **values):
        now[0] += seconds
        return call(*arguments, **values)

    log = MetricsLog(Run(tmp_path))
    log.rewind(None)
    assert log.rate(1, 60) == 0.0
    assert after(2.0, log.rate, 3, 60) == 60.0  # two steps in two seconds
    after(7.0, log.pause, 7.0)
    assert after(1.0, log.rate, 4, 120) == pytest.approx((0.9 * 120 + 120) / (0.9 * 2 + 1))
    log.write(4, valid_loss=2.0)
    after(1.0, log.write, 5, valid_loss=3.0)
    again = MetricsLog(Run(tmp_path))
    again.rewind(4)
    assert again.seconds() == 10.0
    after(2.5, again.write, 5, valid_loss=2.0)
    assert [row["seconds"] for row in Run(tmp_path).metrics] == [10.0, 12.5]
    assert again.best()["step"] == 4  # the earliest of equals
    assert again.stale() == 1


def test_speed_is_tokens_over_seconds_and_no_mean_of_rates(tmp_path, monkeypatch):
    """Of steps that take 0.1 s and 0.9 s in turn a mean of rates would be 2.8 times too high."""
    now = [0.0]
    monkeypatch.setattr("normlab.training.metrics.time.monotonic", lambda: now[0])
    log = MetricsLog(Run(tmp_path))
    log.rewind(None)
    rates = []
    for step in range(200):
        now[0] += (0.1, 0.9)[step % 2]
        rates.append(log.rate(step, tokens=50))
    assert np.mean(rates[100:]) == pytest.approx(100, rel=0.02)


def test_a_first_signal_is_noted_and_a_second_one_acts():
    # A process that a shell starts behind `&` ignores SIGINT; this one does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopRequest() as asked:
            assert asked.number is None
            signal.raise_signal(signal.SIGTERM)
            assert asked.number == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_without_room_is_named():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        StepLines(Path("/dev/full")).append({"step": 1})


# --- end to end


@pytest.mark.system
def test_dropout_too_goes_on_with_the_same_bits(tmp_path):
    model = {"layers": 1, "width": 16, "heads": 1, "max_length": 64, "dropout": 0.3}
    still = train(tiny_config(tmp_path / "a", model=model, steps=6))
    config = tiny_config(tmp_path / "b", model=model, steps=6)
    train(config, stop_after=5)
    assert same_ends(train(config), still, config)


@pytest.mark.system
def test_a_run_that_diverges_keeps_a_model_that_is_one(tmp_path):
    optimizer = {"lr": 1e30, "warmup": 5, "clip": 1e30}
    run = train(tiny_config(tmp_path, optimizer=optimizer))
    assert run.record["state"] == "diverged"
    assert math.isfinite(run.record["train_loss"])
    loaded = normlab.runs.run.load(run.directory)
    assert all(bool((abs(x) < 1e9).all()) for x in jax.tree.leaves(nnx.state(loaded.model)))


@pytest.mark.system
@pytest.mark.parametrize(
    "fields",
    [{"steps": 8}, {"batch": 2}, {"window": 16}, {"seed": 1}, {"eval_windows": 8},
     {"compute": {"statistics": "fp8_e4m3"}}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_every_field_of_a_run_changes_what_is_logged(alone, tmp_path, fields):
    changed = train(tiny_config(tmp_path, **fields))
    then, now = (
        {r["step"]: r for r in logged(run) if "valid_loss" in r} for run in (alone, changed)
    )
    assert then[4]["valid_loss"] != now[4]["valid_loss"]


WALK = [(norm, "pre") for norm in norms if norms[norm].differentiable]
WALK += [("rmsnorm", row) for row in placements if row != "pre"]


@pytest.mark.extended
@pytest.mark.parametrize(("norm", "placement"), WALK)
def test_every_norm_and_every_placement_learns(norm, placement, tmp_path):
    run = train(
        tiny_config(
            tmp_path, norm={"type": norm}, placement={"type": placement}, steps=120, eval_every=40
        )
    )
    valid = [r["valid_loss"] for r in run.metrics if "valid_loss" in r]
    assert valid[-1] < valid[0] - 1.0
    assert valid[0] == pytest.approx(math.log(300), abs=1.0)


@pytest.mark.system
@pytest.mark.parametrize(
    ("norm", "placement"), [("none", "pre"), ("dyt", "post"), ("batchnorm", "peri")]
)
def test_norms_without_a_statistic_or_with_a_state_learn(norm, placement, tmp_path):
    placed = {"norm": {"type": norm}, "placement": {"type": placement}}
    run = train(tiny_config(tmp_path, steps=60, eval_every=60, **placed))
    valid = [r["valid_loss"] for r in run.metrics if "valid_loss" in r]
    assert valid[-1] < valid[0] - 0.5


CUDNN = {"attention": "cudnn", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 65}, "window = 65 tokens is longer than model.max_length = 64"),
        ({"steps": 0}, "steps = 0: expected a whole number ≥ 1"),
        ({"steps": 2}, "optimizer.warmup = 2 steps leaves none of steps = 2"),
        ({"patience": 0}, "patience = 0: expected null or a number ≥ 1"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**32}, "seed = 4294967296: .* this one has the weights of 0"),
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
