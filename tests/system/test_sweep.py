"""A sweep goes on behind a run that fails, and the table has a row for it that says why.

And it is the same sweep when it is repeated after being cut off, and under Hydra's launchers.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evaluate.config import EvaluateConfig
from evaluate.job import evaluate
from normlab.cli import RunFailed, one_of_several
from normlab.config import to_dict
from normlab.data import CorpusUnavailableError
from normlab.data.cache import cached
from normlab.results.spread import lines
from normlab.run import Run
from tests.support.runs import scripted, tiny_config
from train.identity import refuse
from train.loop import Trainer, train
from train.tracking import PACKAGES

TINY = [
    "model.layers=1", "model.width=16", "model.heads=1", "data=embedded", "data.vocab_size=300",
    "steps=2", "optimizer.warmup=1", "batch=2", "window=16", "eval_windows=2",
]  # fmt: skip


def out_of_memory(*_):
    raise RuntimeError("out of memory\nallocating 12 GB")


def test_a_run_that_raised_says_so_and_is_tried_again(tmp_path, monkeypatch):
    scripted(monkeypatch)
    config = tiny_config(tmp_path)
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
    monkeypatch.setattr(Trainer, "__init__", out_of_memory)
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


def test_a_refused_config_does_not_hold_its_directory(tmp_path, monkeypatch):
    scripted(monkeypatch)
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


@pytest.mark.parametrize("corpus", ["embedded", "auto"])
def test_what_keeps_a_run_from_beginning_is_a_row_until_it_begins(tmp_path, monkeypatch, corpus):
    def gone(*_):
        raise CorpusUnavailableError("no text")

    def fails():
        with monkeypatch.context() as patch:
            patch.setattr("train.loop.load_tokens", gone)
            with pytest.raises(CorpusUnavailableError):
                train(config, ["seed=0"])
        return [Run(path) for path in tmp_path.iterdir()]

    monkeypatch.setattr("normlab.data.corpus._wikitext", gone)  # so that auto is the embedded text
    scripted(monkeypatch)
    config = tiny_config(tmp_path, data={"corpus": corpus, "vocab_size": 300})
    (row,) = fails()
    assert row.record == {"state": "refused", "reason": "CorpusUnavailableError: no text"}
    assert row.read("asked.yaml") == ["seed=0"]
    run = train(config, stop_after=2)
    assert (row.directory == run.directory) == (corpus == "embedded")
    assert list(tmp_path.iterdir()) == [run.directory]
    assert len(fails()) == (1 if corpus == "embedded" else 2)
    assert run.record["state"] == "running"  # a run that has begun is not taken for refused
    assert train(config).record["state"] == "finished"
    assert list(tmp_path.iterdir()) == [run.directory]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mesh": {"data": 4}, "batch": 8}, "mesh.data = 4 × mesh.model = 1 is 4 devices"),
        ({"norm": {"type": "groupnorm", "groups": 5}}, "norm.groups = 5 doesn't divide the width"),
        ({"compute": {"attention": "cudnn", "dtype": "bfloat16"}}, "compute.attention=cudnn: exp"),
        ({"tracking": ["wandb"]}, r"tracking=\[wandb\] needs no_such_package"),
    ],
)
def test_what_is_not_here_is_refused_before_anything_is_made(
    tmp_path, monkeypatch, fields, message
):
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")
    monkeypatch.setattr("normlab.data.tokens.cached", None if "norm" in fields else cached)
    with pytest.raises(ValueError, match=message):
        train(tiny_config(tmp_path, **fields))
    (run,) = map(Run, tmp_path.iterdir())
    assert run.record["state"] == "refused"
    assert {p.name for p in run.directory.iterdir()} == {"asked.yaml", "config.yaml", "record.json"}


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


ROOT = Path(__file__).parent.parent.parent
LONG = ["steps=4000", "eval_every=400"]  # seconds, so that a signal finds it at work
RAY = "+hydra.launcher.ray.init"
LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "ray": [f"{RAY}.num_cpus=2", f"{RAY}.include_dashboard=false"],
}


def begun(runs, *arguments):
    """A sweep in a process of its own."""
    command = [sys.executable, "-m", "train", "-m", *TINY, f"runs={runs}", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def sweep(runs, *arguments):
    process = begun(runs, *arguments)
    out, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def by_seed(runs):
    """The runs in a directory, in the order of their seeds."""
    found = [Run(path.parent) for path in Path(runs).glob("*/config.yaml")]
    return sorted(found, key=lambda run: run.read("config.yaml")["seed"])


def at_work(process, runs, seed, step):
    """The run of a seed in a sweep that goes on, once it has logged that step."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        for run in by_seed(runs)[seed:]:
            if any(row["step"] >= step for row in run.metrics):
                return run
        time.sleep(0.05)
    process.kill()
    raise AssertionError(f"seed {seed} did not come to step {step}: {process.communicate()[1]}")


def launcher(name):
    """What to add to a sweep's line; the test is skipped where the launcher isn't installed."""
    plugin = name.partition("_")[0]
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason=f"no launcher {name}")
    return [f"hydra/launcher={name}", *LAUNCHERS[name]]


@pytest.mark.system
def test_a_sweep_goes_on_behind_a_config_that_is_none(tmp_path):
    done = sweep(tmp_path, "norm=none,rmsnorm", "placement=keel")
    assert done.returncode == 2
    assert "failed: " in done.stderr
    assert "norm=none placement=keel" in done.stderr.splitlines()[-2]
    records = {run.name.split("-")[0]: Run(run).record for run in tmp_path.glob("*-keel-*")}
    assert records["rmsnorm"]["state"] == "finished"
    assert records["none"]["state"] == "refused"
    assert "would grow the stream" in records["none"]["reason"]


@pytest.mark.system
def test_a_sweep_that_is_cut_off_goes_on_and_what_is_finished_is_left_alone(tmp_path):
    process = begun(tmp_path, "seed=0,1", *LONG)
    at_work(process, tmp_path, seed=1, step=500)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 128 + signal.SIGTERM, errors
    done, cut = by_seed(tmp_path)
    assert (done.record["state"], cut.record["state"]) == ("finished", "running")

    def files(run):
        return {p: p.read_bytes() for p in sorted(run.directory.rglob("*")) if p.is_file()}

    before = files(done)
    assert done["record.json"] in before
    again = sweep(tmp_path, "seed=0,1", *LONG)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished already") == 1
    assert files(done) == before
    first, second = cut.read("provenance.json")["sessions"]
    assert first["from_step"] == 0
    assert second["from_step"] >= 500
    assert cut.record["state"] == "finished"


@pytest.mark.system
def test_what_diverges_and_what_fails_in_a_sweep_is_tabulated(tmp_path):
    asked = ["optimizer.lr=1e-2,1e30", "window=16,60000", "model.max_length=60000", "steps=4"]
    runs, out = tmp_path / "runs", tmp_path / "out"
    done = sweep(runs, *asked, "log_every=1")
    assert done.returncode == 2
    command = [sys.executable, "-m", "evaluate", f"runs={runs}", f"out={out}", "max_windows=2"]
    subprocess.run([*command, "precision=[fp32]"], cwd=ROOT, check=True, capture_output=True)
    records = map(json.loads, (out / "records.jsonl").read_text().splitlines())
    said = sorted((r["model"], r["status"].split(" ")[0]) for r in records)
    states = sorted((run.directory.name, run.record["state"]) for run in by_seed(runs))
    assert sorted(state for _, state in states) == ["diverged", "failed", "failed", "finished"]
    kinds = {"finished": "ok", "failed": "failed:"}
    assert said == [(name, kinds.get(state, state)) for name, state in states]
    table = (out / "table.md").read_text()
    assert table.count("failed: ValueError: the validation split has") == 2
    rows = [row for row in table.splitlines() if "| diverged" in row]
    assert len(rows) == 1
    assert "1e+30" in rows[0]


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """What a sweep of two seeds in one process leaves: directories and losses."""
    runs = tmp_path_factory.mktemp("one")
    assert sweep(runs, "seed=0,1").returncode == 0
    return left(runs)


def left(runs):
    return [(r.directory.name, r.record["state"], r.record["train_loss"]) for r in by_seed(runs)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("joblib", marks=pytest.mark.system),
        *(pytest.param(n, marks=pytest.mark.extended) for n in ("submitit_local", "ray")),
    ],
)
def test_a_launcher_leaves_the_runs_that_one_process_leaves(tmp_path, losses, name):
    done = sweep(tmp_path, "seed=0,1", *launcher(name))
    assert done.returncode == 0, done.stderr
    assert len(losses) == 2
    assert left(tmp_path) == losses


@pytest.mark.extended
def test_a_launcher_that_asks_for_its_job_again_finds_the_checkpoint(tmp_path):
    """Submitit at the end of its time: SIGUSR2 to the task, which is begun once more."""
    process = begun(tmp_path, "seed=0", *LONG, *launcher("submitit_local"))
    run = at_work(process, tmp_path, seed=0, step=500)
    os.kill(int(run.read(".holder.json")["who"].split(" ")[0]), signal.SIGUSR2)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    (log,) = tmp_path.glob(".submitit/*/*_log.err")
    assert "Requeued job" in log.read_text()
    assert [s["from_step"] >= 400 for s in run.read("provenance.json")["sessions"]] == [False, True]
    assert run.record["state"] == "finished"
    assert run.record["steps"] == 4000
