"""A sweep goes on behind a run that fails, and the table has a row for it that says why."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_config

from evaluate.config import EvaluateConfig
from evaluate.job import evaluate
from normlab.cli import RunFailed, one_of_several
from normlab.config import to_dict
from normlab.results.spread import lines
from normlab.run import Run
from train.identity import refuse
from train.loop import Trainer, train

TINY = [
    "model.layers=1", "model.width=16", "model.heads=1", "data=embedded", "data.vocab_size=300",
    "steps=2", "optimizer.warmup=1", "batch=2", "window=16", "eval_windows=2",
]  # fmt: skip


def out_of_memory(trainer, checkpoints):
    raise RuntimeError("out of memory\nallocating 12 GB")


def test_a_run_that_raised_says_so_and_is_tried_again(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_restore", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            train(config)
    (run,) = map(Run, tmp_path.iterdir())
    assert run.record["state"] == "failed"
    assert run.record["reason"] == "RuntimeError: out of memory"
    assert not run.ended
    again = train(config)
    assert again.record["state"] == "finished"
    assert "reason" not in again.record


def test_what_failed_and_what_was_refused_are_rows(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_restore", out_of_memory)
        for seed in (0, 1):
            with pytest.raises(RuntimeError):
                train(tiny_config(runs, seed=seed))
    wrong = to_dict(tiny_config(runs)) | {"norm": {"type": "none"}}
    wrong["model"]["layers"] = -1
    refuse(wrong, ["norm=none"], ValueError("model.layers = -1: expected more"))
    found = evaluate(EvaluateConfig(runs=str(runs), precision=("fp32",), out=str(tmp_path / "out")))
    said = sorted((r.norm, r.status) for r in found)
    failed = "failed: RuntimeError: out of memory"
    refused = "refused: ValueError: model.layers = -1: expected more"
    assert said == [("none", refused), ("rmsnorm", failed), ("rmsnorm", failed)]
    (head, row) = lines([r for r in found if r.norm == "rmsnorm"], ["fp32"])
    assert row[head.index("fp32")] == f"2 {failed}"


def test_a_refused_config_does_not_hold_its_directory(tmp_path):
    config = tiny_config(tmp_path, run=str(tmp_path / "mine"))
    for warmup in (2000, 3000):
        wrong = to_dict(config)
        wrong["optimizer"]["warmup"] = warmup
        refuse(wrong, [], ValueError(f"optimizer.warmup = {warmup}"))
    run = Run(tmp_path / "mine")
    assert run.record["reason"].endswith("3000")
    assert train(config).record["state"] == "finished"
    assert run.read("config.yaml")["optimizer"]["warmup"] == 2
    refuse(wrong, [], ValueError("again"))  # and nothing that was trained is lost to one
    assert run.record["state"] == "finished"


def test_an_error_becomes_words_that_go_from_process_to_process(capsys):
    with pytest.raises(RunFailed, match="seed=1: steps = 0") as caught, one_of_several(["seed=1"]):
        raise OSError("steps = 0: expected more")
    assert "failed: seed=1: steps = 0: expected more" in capsys.readouterr().err
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


def test_an_error_that_nobody_asked_for_keeps_its_traceback(capsys):
    with pytest.raises(RunFailed), one_of_several([]):
        raise ZeroDivisionError("somewhere in a norm")
    assert "Traceback" in capsys.readouterr().err


def sweep(runs, *arguments):
    command = [sys.executable, "-m", "train", "-m", *TINY, f"runs={runs}", *arguments]
    root = Path(__file__).parent.parent
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


@pytest.mark.slow
def test_a_sweep_goes_on_behind_a_config_that_is_none(tmp_path):
    done = sweep(tmp_path, "norm=none,rmsnorm", "placement=keel")
    assert done.returncode == 2
    assert "failed: " in done.stderr
    assert "norm=none placement=keel" in done.stderr.splitlines()[-2]
    records = {run.name.split("-")[0]: Run(run).record for run in tmp_path.glob("*-keel-*")}
    assert records["rmsnorm"]["state"] == "finished"
    assert records["none"]["state"] == "refused"
    assert "would grow the stream" in records["none"]["reason"]


@pytest.mark.slow
def test_joblib_starts_the_runs_of_a_sweep_side_by_side(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="normlab[joblib] is missing")
    done = sweep(tmp_path, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1")
    assert done.returncode == 0, done.stderr
    records = [Run(path.parent).record for path in tmp_path.glob("*/record.json")]
    assert [(r["state"], r["seed"]) for r in sorted(records, key=lambda r: r["seed"])] == [
        ("finished", 0),
        ("finished", 1),
    ]
