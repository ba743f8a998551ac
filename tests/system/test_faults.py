"""What can go wrong with a run while it trains: said clearly, nothing lost, the same bits after."""

import os
import resource
import signal
from pathlib import Path

import pytest
from orbax.checkpoint import v1 as ocp

from normlab.data import embedded, wikitext
from normlab.runs.checkpoint import Checkpoints
from normlab.training.trainer import train
from tests.support.runs import (
    flipped,
    largest,
    loop_config,
    same_ends,
    scripted,
    signalled,
    tiny_config,
    unlisted,
)


@pytest.mark.system
def test_a_signal_saves_and_the_same_command_comes_to_the_same_bits(alone, tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    with monkeypatch.context() as patch:
        signalled(patch, 5, signal.SIGTERM)
        with pytest.raises(SystemExit) as left:
            train(config)
    assert left.value.code == 128 + signal.SIGTERM
    run = train(config)
    assert [s["from_step"] for s in run.read("provenance.json")["sessions"]] == [0, 6]
    assert same_ends(run, alone, config)


def stopped(directory, make=tiny_config, steps=9):
    """A run that was stopped after `steps`, with checkpoints of steps 4 and 8."""
    config = make(directory)
    return config, train(config, stop_after=steps)


def truncated(where):
    file = largest(where / "params")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(where):
    for file in (f for f in where.rglob("*") if f.is_file()):
        file.write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flipped, marks=pytest.mark.system),
        *(pytest.param(d, marks=pytest.mark.extended) for d in (truncated, unlisted, emptied)),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_goes_on(
    alone, tmp_path, capsys, damage
):
    config, run = stopped(tmp_path)
    damage(run["checkpoints"] / "8")
    train(config)
    said = capsys.readouterr().out
    assert "goes on from step 4" in said
    assert "corrupt.8" in said
    assert (run["checkpoints"] / "corrupt.8").is_dir()
    assert same_ends(run, alone, config)


def names(run):
    """The checkpoints of a run, those that were set aside among them."""
    return sorted(p.name for p in run["checkpoints"].iterdir())


@pytest.mark.system
@pytest.mark.parametrize(("damage", "aside"), [(truncated, ""), (unlisted, "corrupt.")])
def test_where_every_checkpoint_is_damaged_nothing_begins_again_by_itself(
    tmp_path, monkeypatch, damage, aside
):
    scripted(monkeypatch)
    config, run = stopped(tmp_path, loop_config)
    there, told = names(run), run["metrics.jsonl"].read_text()
    for step in there:
        damage(run["checkpoints"] / step)
    for _ in range(2):  # the second time as the first
        with pytest.raises(ValueError, match="no checkpoint can be read"):
            train(config)
    assert names(run) == sorted(aside + step for step in there)
    assert run["metrics.jsonl"].read_text() == told


@pytest.mark.system
def test_what_the_machine_lacks_sets_no_checkpoint_aside(tmp_path, monkeypatch):
    scripted(monkeypatch)
    cause = MemoryError("Unable to allocate 64.0 MiB for an array")
    config, run = stopped(tmp_path, loop_config)
    there = names(run)

    def stale(path, *more):
        raise OSError(116, "Stale file handle", str(path))

    def failed(*_):
        raise KeyError("Failed to load checkpointable: incompatible handler") from cause

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", stale)
        with pytest.raises(OSError, match="Stale"):
            Checkpoints(run["checkpoints"], writer=True)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.training.Checkpointer, "load_checkpointables", failed)
        with pytest.raises(OSError, match="8 can't be read now .*left as it is"):
            train(config)
    assert names(run) == there
    assert run.record["state"] == "failed"
    assert str(cause) in run.record["reason"]
    assert train(config).record["state"] == "finished"
    assert [s["from_step"] for s in run.read("provenance.json")["sessions"]] == [0, 8]


@pytest.mark.system
def test_two_processes_on_one_directory(tmp_path, monkeypatch):
    scripted(monkeypatch)
    config, run = stopped(tmp_path, loop_config)
    with run.locked(), pytest.raises(ValueError, match=f"another process .*{os.getpid()} on"):
        train(config)
    assert train(config).record["state"] == "finished"


@pytest.mark.extended
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(alone, tmp_path):
    config, _ = stopped(tmp_path, steps=5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # as a disk with 10 kB left
    try:
        with pytest.raises(OSError, match="could not be written.*File too large"):
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same_ends(train(config), alone, config)


@pytest.mark.system
def test_a_text_file_that_changes_under_a_run(tmp_path, monkeypatch):
    scripted(monkeypatch)
    monkeypatch.delitem(wikitext.FACTS, ("wikitext2-raw", "valid"))  # so that any text will do
    for split in ("train", "valid"):
        text = embedded.read(split)[:60_000] + "\n"
        (tmp_path / f"wiki.{split}.raw").write_text(text)
    data = {"corpus": "wikitext2-raw", "root": str(tmp_path), "vocab_size": 300}
    config = loop_config(tmp_path / "runs", data=data)
    run = train(config, stop_after=5)
    told, file = run["metrics.jsonl"].read_text(), tmp_path / "wiki.train.raw"
    text = file.read_text()
    file.write_text(text.replace("the", "a", 1))
    with pytest.raises(ValueError, match=r"the text has changed .*wikitext2-raw.*put it back"):
        train(config)
    file.unlink()
    with pytest.raises(OSError, match=rf"the train split .* is not in {tmp_path}"):
        train(config)
    assert run["metrics.jsonl"].read_text() == told
    file.write_text(text)
    assert train(config).record["state"] == "finished"
