"""A sweep goes on behind a run that fails, and the table has a row for it that says why.

And it is the same sweep when it is repeated after being cut off, and under Hydra's launchers.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from normlab.commands.errors import RunFailed, one_of_several
from normlab.results import RecordFile
from normlab.runs.run import Run

TINY = [
    "model.layers=1", "model.width=16", "model.heads=1", "data=embedded", "data.vocab_size=300",
    "steps=2", "optimizer.warmup=1", "batch=2", "window=16", "eval_windows=2",
]  # fmt: skip


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
LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
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
    deadline = time.monotonic() + 500
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
    command = ["seed=0,1", "steps=1600", "eval_every=200"]
    process = begun(tmp_path, *command)
    at_work(process, tmp_path, seed=1, step=200)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, errors
    done, cut = by_seed(tmp_path)
    assert (done.record["state"], cut.record["state"]) == ("finished", "running")

    def files(run):
        return {p: p.read_bytes() for p in sorted(run.directory.rglob("*")) if p.is_file()}

    before = files(done)
    assert done["record.json"] in before
    again = sweep(tmp_path, *command)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished already") == 1
    assert files(done) == before
    first, second = cut.read("provenance.json")["sessions"]
    assert first["from_step"] == 0
    assert second["from_step"] >= 200
    assert cut.record["state"] == "finished"


@pytest.mark.system
def test_what_diverges_and_what_fails_in_a_sweep_is_tabulated(tmp_path):
    asked = ["optimizer.lr=1e-2,1e30", "window=16,60000", "model.max_length=60000", "steps=4"]
    runs, out = tmp_path / "runs", tmp_path / "out"
    done = sweep(runs, *asked, "log_every=1")
    assert done.returncode == 2
    command = [sys.executable, "-m", "evaluate", f"runs={runs}", f"out={out}", "max_windows=2"]
    subprocess.run([*command, "precision=[fp32]"], cwd=ROOT, check=True, capture_output=True)
    records = RecordFile(out / "records.jsonl").read()
    said = sorted((r.model.name, r.status.split(" ")[0]) for r in records)
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
        pytest.param("submitit_local", marks=pytest.mark.extended),
    ],
)
def test_a_launcher_leaves_the_runs_that_one_process_leaves(tmp_path, losses, name):
    done = sweep(tmp_path, "seed=0,1", *launcher(name))
    assert done.returncode == 0, done.stderr
    assert len(losses) == 2
    assert left(tmp_path) == losses


@pytest.mark.extended
def test_optunas_sweeper_searches_for_the_rate_with_the_lowest_loss(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="no sweeper optuna")
    own = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    done = sweep(tmp_path, "experiment=optuna", *own)
    assert done.returncode == 0, done.stderr
    found = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())
    losses = {
        run.read("config.yaml")["optimizer"]["lr"]: run.record["best_valid_loss"]
        for run in by_seed(tmp_path)
    }
    assert len(losses) == 3
    assert all(1e-3 <= rate <= 3e-2 for rate in losses)
    assert found["best_value"] == min(losses.values())
    assert losses[found["best_params"]["optimizer.lr"]] == found["best_value"]


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
