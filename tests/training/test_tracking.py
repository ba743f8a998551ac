"""Trackers: told what metrics.jsonl is told, closed however a run ends, and asked for by name."""

import importlib.util
import re
import time
from pathlib import Path

import pytest

from normlab.runs.run import Run
from normlab.training.tracking import known_as, scalars, tracked, trackers
from normlab.training.trainer import train
from tests.support.runs import loop_config, scripted, tiny_config

pytestmark = pytest.mark.system


@pytest.fixture
def fake():
    """A tracker that remembers: its calls."""
    calls = []

    @trackers.register("fake")
    class Fake:
        def open(self, run, config, step):
            calls.append(("open", run.directory.name, config["seed"], step))

        def log(self, step, values):
            calls.append((step, dict(values)))

        def close(self):
            calls.append("closed")

    yield calls
    trackers.remove("fake")


def test_a_tracker_is_told_what_the_log_is_told(fake, tmp_path, monkeypatch):
    scripted(monkeypatch)
    run = train(loop_config(tmp_path, tracking=["fake"], seed=3))
    opened, *told, closed = fake
    assert opened == ("open", run.directory.name, 3, 0)
    assert closed == "closed"
    rows = [{k: v for k, v in row.items() if v is not None} for row in run.metrics]
    assert [step for step, _ in told] == [row["step"] for row in rows]
    for (step, values), row in zip(told, rows, strict=True):
        assert {"step": step, "seconds": row["seconds"], **values} == row


def test_tracking_is_no_part_of_a_runs_name_and_goes_on_where_the_run_does(
    fake, tmp_path, monkeypatch
):
    scripted(monkeypatch)
    run = train(loop_config(tmp_path), stop_after=7)
    assert train(loop_config(tmp_path, tracking=["fake"])).directory == run.directory
    assert fake[0][-1] == 4  # the step of the newest checkpoint
    assert fake[1][0] == 5


def test_a_tracker_is_closed_when_the_run_fails(fake, tmp_path, monkeypatch):
    def fails(step):
        raise RuntimeError("no more")

    scripted(monkeypatch, fails)
    with pytest.raises(RuntimeError, match="no more"):
        train(loop_config(tmp_path, tracking=["fake"]))
    assert fake[-1] == "closed"


@pytest.mark.system
def test_a_tracker_is_told_what_is_seen_inside_too(fake, tmp_path):
    run = train(tiny_config(tmp_path, tracking=["fake"], diagnostics_every=5))
    told = fake[1:-1]
    looks = [(step, values) for step, values in told if "stream/0/mean_square" in values]
    assert [step for step, _ in looks] == [0, 5, 10, 12]
    for (_, values), row in zip(looks, run.diagnostics, strict=True):
        assert values["sites/norm_final/max_abs"] == row["sites"]["norm_final"]["max_abs"]
        assert values["blocks/0/attention_score"] == row["blocks"][0]["attention_score"]
    assert [step for step, _ in told] == sorted(step for step, _ in told)  # wandb asks for it


def test_nested_values_have_paths_and_null_has_none():
    values = {"a": {"b.c": [1, None, {"d": 3}]}, "e": None, "f": 2.5}
    assert scalars(values) == {"a/b.c/0": 1.0, "a/b.c/2/d": 3.0, "f": 2.5}


def test_runs_of_one_directory_name_are_told_apart(tmp_path):
    names = []
    for place, seed in (("a", 0), ("a", 0), ("b", 1)):
        directory = tmp_path / place / "mine"
        names.append(known_as(Run(directory), {"seed": seed, "run": str(directory)}))
    assert names[0] == names[1] != names[2]
    assert all(name.startswith("mine-") for name in names)
    odd = known_as(Run(tmp_path / ("a/lr:1e-3 #2?%é\\" + "x" * 200)), {"run": "there"})
    assert re.fullmatch(r"lr_1e-3_2_x+-[0-9a-f]{10}", odd)  # what W&B takes for an id
    assert len(odd) < 128
    assert known_as(Run("runs/rmsnorm-pre-0123456789"), {"run": None}).endswith("-0123456789")


def test_an_unknown_tracker_is_refused_with_the_nearest_one(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'tensorboard'"):
        tiny_config(tmp_path, tracking=["tensor-board"])


@pytest.mark.parametrize("name", sorted(set(trackers)))
def test_a_package_that_is_missing_is_an_extra_by_name(name, tmp_path, monkeypatch):
    def refuse(package, *more):
        raise ImportError(package)

    monkeypatch.setattr("importlib.import_module", refuse)
    with (
        pytest.raises(ValueError, match=rf"tracking=\[{name}\] needs .*normlab\[{name}\]"),
        tracked([name], Run(tmp_path), 0),
    ):
        pass


SEEN = "sites/blocks.0.mlp.norm_in/max_abs"


def logged_twice(name, directory):
    """A run's directory after two sessions, the second from step 2 on."""
    run = Run(directory / "run")
    run.write("config.yaml", {"seed": 0, "norm": {"type": "rmsnorm"}})
    for start in (0, 2):
        with tracked([name], run, start) as (tracker,):
            for step in range(start + 1, start + 4):
                tracker.log(step, {"loss": 1.0 / (start + step), SEEN: float(step)})
    return run


def missing(package):
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None, reason=f"{package} is not installed"
    )


@pytest.mark.system
@missing("tensorboardX")
@missing("tensorboard")
def test_tensorboard_reads_what_was_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = logged_twice("tensorboard", tmp_path)
    found = EventAccumulator(str(run["tensorboard"]))
    found.Reload()
    points = {event.step: event.value for event in found.Scalars("loss")}
    assert points == pytest.approx({1: 1.0, 2: 1 / 2, 3: 1 / 5, 4: 1 / 6, 5: 1 / 7})
    assert len(found.Scalars("loss")) == 5
    assert [event.value for event in found.Scalars(SEEN)] == [1, 2, 3, 4, 5]


@pytest.mark.system
@missing("wandb")
@pytest.mark.filterwarnings("ignore")  # of its own code
def test_wandb_writes_offline_runs(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    run = logged_twice("wandb", tmp_path)
    files = sorted(run["wandb"].glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == ["run-run.wandb"] * 2
    names = ("loss", SEEN, "normlab", "rmsnorm")  # values, project, config

    def lacking():
        return [
            (f.parent.name, n) for f in files for n in names if n.encode() not in f.read_bytes()
        ]

    deadline = time.monotonic() + 60  # its other process writes on behind `finish`
    while lacking() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert lacking() == []


@pytest.mark.system
def test_the_tracker_of_the_documentation_tracks(tmp_path, monkeypatch):
    page = Path(__file__).parent.parent.parent / "docs" / "howto" / "tracking.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(example, str(page), "exec"), {})
    finally:
        trackers.remove("plain")
    (lines,) = tmp_path.glob("runs/*/losses.txt")
    assert [line.split()[0] for line in lines.read_text().splitlines()] == ["10", "20"]
