"""Faults that only real processes, signals and file systems have: the run ends in the same bits."""

import random
import signal
import subprocess
import time

import pytest

from normlab.runs.run import Run
from normlab.training.trainer import train
from tests.support import fault_runs
from tests.support.runs import same_ends, tiny_config

SHORT = {"steps": 1000, "eval_every": 100, "log_every": 10}
LONG = SHORT | {"steps": 3000}
needs_mounts = pytest.mark.skipif(
    not fault_runs.mounts(), reason="`unshare --user --mount` doesn't work here"
)


def started(directory, fields):
    """`python -m train` of a run as a process of its own, its words in two pipes."""
    return subprocess.Popen(
        fault_runs.command(directory, *(f"{name}={value}" for name, value in fields.items())),
        cwd=fault_runs.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def logged(run):
    """The newest step in a run's log."""
    return max((row["step"] for row in run.metrics), default=0)


def wait_for(process, run, step):
    """Until a living process has logged a later step than `step`."""
    deadline = time.monotonic() + 300
    while logged(run) <= step:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def sessions(run):
    """The step from which each process went on."""
    return [s["from_step"] for s in run.read("provenance.json")["sessions"]]


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """The long run, left alone, and its config."""
    config = tiny_config(tmp_path_factory.mktemp("long"), **LONG)
    return train(config), config


@pytest.mark.system
def test_a_kill_and_then_a_termination_leave_the_same_bits(tmp_path):
    run, config = Run(tmp_path / "run"), tiny_config(tmp_path / "alone", **SHORT)
    process = started(run.directory, SHORT)
    wait_for(process, run, 120)
    while not any(checkpoints(run)):  # a save goes on behind the steps; that of step 0 is no news
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    process = started(run.directory, SHORT)
    wait_for(process, run, logged(run))
    seen = logged(run)
    process.terminate()
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors[-3000:]
    assert "SIGTERM at step" in said
    assert "saved" in said
    stopped = max(int(p.name) for p in run["checkpoints"].iterdir())
    assert stopped >= seen
    process = started(run.directory, SHORT)
    assert process.wait(timeout=300) == 0, process.communicate()[1][-3000:]
    process.communicate()
    first, second, third = sessions(run)
    assert (first, third) == (0, stopped)
    assert second >= 100
    assert second % 100 == 0
    assert run.record["state"] == "finished"
    assert same_ends(run, train(config), config)


@pytest.mark.extended
def test_five_kills_leave_the_same_bits(long, tmp_path):
    run, chance, began = Run(tmp_path / "run"), random.Random(0), []
    for kills in range(5):
        process = started(run.directory, LONG)
        wait_for(process, run, logged(run) + 10 * chance.randrange(30))
        process.kill()
        assert process.wait() == -signal.SIGKILL, f"ended after {kills} kills: give it more steps"
        process.communicate()
        began.append(sessions(run)[-1])
    process = started(run.directory, LONG)
    assert process.wait() == 0, process.communicate()[1][-3000:]
    process.communicate()
    assert sessions(run)[:-1] == began == sorted(began)
    assert len(sessions(run)) == 6
    assert [row["step"] for row in run.metrics] == [row["step"] for row in long[0].metrics]
    assert run.record["state"] == "finished"
    assert same_ends(run, *long)


@pytest.mark.extended
def test_of_two_processes_at_once_one_trains_and_the_other_says_so(long, tmp_path):
    run = Run(tmp_path / "run")
    both = [started(run.directory, LONG) for _ in range(2)]
    words = [process.communicate(timeout=300) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], words
    winner, loser = both[codes.index(0)], words[codes.index(2)]
    assert f"being trained by another process ({winner.pid} on" in loser[1]
    assert sessions(run) == [0]
    assert same_ends(run, *long)


@pytest.mark.extended
@needs_mounts
def test_a_disk_that_fills_up(alone, tmp_path):
    seen = fault_runs.on_disk("full", tmp_path)
    (first, said), (second, repeated), (last, _) = seen["calls"]
    assert (first, second, last) == (2, 2, 0)
    for words in (said, repeated, seen["record"]["reason"]):
        assert "could not be written" in words
        assert "No space left on device" in words
        assert "Traceback" not in words
    assert seen["record"]["state"] == "failed"
    assert seen["kept"] == ["0", "4"]
    assert seen["line"]["said"].startswith("[Errno 28] No space left on device: ")
    assert "metrics.jsonl" in seen["line"]["said"]
    assert seen["line"]["torn"]
    assert seen["line"]["mended"]
    assert "Traceback" not in seen["stderr"]
    assert same_ends(Run(seen["ended"]), alone, tiny_config(tmp_path))


@pytest.mark.extended
@needs_mounts
def test_a_directory_that_turns_read_only(alone, tmp_path):
    seen = fault_runs.on_disk("readonly", tmp_path)
    (first, said), (second, repeated), (last, _) = seen["calls"]
    assert (first, second, last) == (2, 2, 0)
    for words in (said, repeated):
        assert "Read-only file system" in words
        assert str(tmp_path) in words
        assert "Traceback" not in words
    assert {"0", "4"} <= set(seen["kept"])
    assert "Traceback" not in seen["stderr"]
    assert same_ends(Run(seen["ended"]), alone, tiny_config(tmp_path))


@pytest.mark.extended
def test_kills_inside_saves_leave_the_checkpoint_before_or_the_whole_one(tmp_path):
    config = tiny_config(tmp_path, eval_every=1, run=str(tmp_path / "killed"))
    run, began = Run(config.run), []
    for when in ("0", "0.02", "0.1", "rename", "renamed"):
        before = checkpoints(run)
        process = fault_runs.job("killed_in_save", run.directory, when)
        assert process.returncode == -signal.SIGKILL, process.stderr[-3000:]
        began.append(sessions(run)[-1])
        assert began[-1] == max(before, default=0)
        half = [p.name for p in run["checkpoints"].glob("*-tmp")]
        print(f"killed at {when}: whole {checkpoints(run)}, half {half}")
        if when == "rename":
            assert [name.partition(".")[0] for name in half] == [str(began[-1] + 2)]
        if when == "renamed":
            assert began[-1] + 2 in checkpoints(run)
    train(config)
    reference = train(tiny_config(tmp_path / "alone", eval_every=1))
    assert sessions(run)[:-1] == began
    assert len(sessions(run)) == 6
    assert same_ends(run, reference, config)


def checkpoints(run):
    """Steps of the checkpoints that are there by name."""
    if not run["checkpoints"].is_dir():
        return []
    return sorted(int(p.name) for p in run["checkpoints"].iterdir() if p.name.isdigit())
