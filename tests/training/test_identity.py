"""Which run a directory holds, and what it says of one that is refused or fails."""

from pathlib import Path

import jax
import pytest

from normlab.config import to_dict
from normlab.data import CorpusUnavailableError, load_tokens
from normlab.data.cache import cached
from normlab.data.tokenizer import load_tokenizer
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.results.spread import lines
from normlab.runs.run import Run
from normlab.training.identity import LINE, identity, noting_failure, reason, refuse, sign
from normlab.training.tracking import PACKAGES
from normlab.training.trainer import Trainer, train
from tests.support.runs import loop_config, scripted, tiny_config


def signed(directory, **fields):
    """A directory in which a run has begun, its config and its text."""
    config = tiny_config("unused", run=str(directory), **fields)
    tokens = load_tokens(config.data)
    sign(Run(directory), config, tokens, ["a=1"])
    return Run(directory), config, tokens


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"steps": 13}, "steps = 12 there, 13 here"), ({"norm": {"type": "none"}}, "norm.type = ")],
)
def test_another_config_in_the_same_directory_is_refused(tmp_path, fields, message):
    signed(tmp_path)
    with pytest.raises(ValueError, match=f"another config .{message}"):
        signed(tmp_path, **fields)
    signed(tmp_path, log_every=7)


@pytest.mark.parametrize("what", ["text", "tokenizer"])
def test_a_text_that_changed_under_a_run_is_refused(tmp_path, what):
    run, *_ = signed(tmp_path)
    run.write("provenance.json", run.read("provenance.json") | {what: "0" * 64})
    with pytest.raises(ValueError, match=f"the {what} has changed since"):
        signed(tmp_path)


@pytest.mark.system
def test_a_run_goes_on_under_the_settings_of_jax_that_it_began_with(tmp_path, monkeypatch):
    scripted(monkeypatch)
    config = loop_config(tmp_path)
    run = train(config, stop_after=2)
    (session,) = run.read("provenance.json")["sessions"]
    assert session["jax_settings"] == {}
    with jax.numpy_rank_promotion("warn"), pytest.raises(ValueError, match="JAX_NUMPY_RANK_PROMO"):
        train(config)
    assert train(config).record["state"] == "finished"
    with jax.numpy_rank_promotion("warn"):  # nothing is computed any more
        train(config)


def test_a_folder_of_other_files_is_no_run(tmp_path):
    (tmp_path / "wiki.train.tokens").write_text("text")
    with pytest.raises(ValueError, match=r"holds wiki.train.tokens and no run: expected a new"):
        signed(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["wiki.train.tokens"]


def test_a_kill_while_the_directory_is_being_made_leaves_nothing_that_stops_the_next_try(tmp_path):
    run, _, tokens = signed(tmp_path)
    for name in ("record.json", "provenance.json"):
        run[name].unlink()
    (run["tokenizer"] / "tokenizer.json").unlink()
    run.write("overrides.yaml", [])
    signed(tmp_path)
    assert run.record == {"state": "running"}
    assert run.read("overrides.yaml") == ["a=1"]
    assert load_tokenizer(run["tokenizer"]).hash == tokens.tokenizer.hash
    assert run.read("provenance.json")["sessions"] == []


def test_what_a_number_depends_on_is_in_the_name_of_its_run():
    def told(corpus="embedded", runs="runs", **fields):
        return identity(to_dict(tiny_config(runs, **fields)), corpus)

    assert told() == told(runs="elsewhere", log_every=7)
    own = {"corpus": "text", "vocab_size": 300}
    here, there = (told("notes-1a2b", data=own | {"path": path}) for path in ("a.txt", "b/a.txt"))
    assert here == there  # the corpus' name has the hash of its content
    assert here != told("notes-3c4d", data=own | {"path": "a.txt"})
    assert told() != told(corpus="wikitext2")
    assert told() != told(seed=1)
    assert told() != told(norm={"type": "rmsnorm", "eps": 1e-6})


# --- what is refused, and what fails


def test_a_directory_that_cannot_be_written_is_said_before_anything_is_trained():
    target = Path("/sys/normlab") if Path("/sys").is_dir() else Path("/dev/null/normlab")
    with pytest.raises(OSError, match=str(target)):
        train(tiny_config(target))


def test_a_reason_keeps_what_failed_and_the_cause():
    error = OSError(
        f"a checkpoint in {'/long' * 200} could not be written: No space left on device"
    )
    said = reason(error)
    assert len(said) < LINE + 5
    assert said.startswith("OSError: a checkpoint in")
    assert said.endswith("No space left on device")
    assert reason(OSError("short\nand more")) == "OSError: short"


def test_a_record_that_cannot_be_written_hides_no_error(tmp_path):
    run = Run(tmp_path / "a file")
    run.directory.write_text("where the directory should be")
    with pytest.raises(MemoryError, match="the cause"), noting_failure(run):
        raise MemoryError("the cause")


def out_of_memory(*_):
    raise RuntimeError("out of memory\nallocating 12 GB")


@pytest.mark.system
def test_a_run_that_raised_says_so_and_is_tried_again(tmp_path, monkeypatch):
    scripted(monkeypatch)
    config = loop_config(tmp_path)
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
    said = sorted((r.model.norm, r.status) for r in found)
    failed = "failed: RuntimeError: out of memory"
    refused = "refused: ValueError: model.layers = -1: expected more"
    assert said == [("none", refused), ("rmsnorm", failed), ("rmsnorm", failed)]
    (head, row) = lines([r for r in found if r.model.norm == "rmsnorm"], ["fp32"])
    assert row[head.index("fp32")] == f"2 {failed}"


@pytest.mark.system
def test_a_refused_config_does_not_hold_its_directory(tmp_path, monkeypatch):
    scripted(monkeypatch)
    config = loop_config(tmp_path, run=str(tmp_path / "mine"))
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


def test_a_run_that_failed_before_its_first_checkpoint_begins_with_what_was_mended(
    tmp_path, monkeypatch
):
    scripted(monkeypatch)
    config = loop_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("normlab.training.trainer.make_step", lambda *_: {}["a norm's mistake"])
        with pytest.raises(KeyError):
            train(config)
    (run,) = map(Run, tmp_path.iterdir())
    assert run.record["state"] == "failed"
    monkeypatch.setattr("normlab.runs.sources.source_hash", lambda _: "mended")
    train(config, stop_after=4)
    assert run.read("provenance.json")["norm_source"] == "mended"
    monkeypatch.setattr("normlab.runs.sources.source_hash", lambda _: "another")
    with pytest.raises(ValueError, match="source of norm=rmsnorm: not what"):
        train(config)


@pytest.mark.system
@pytest.mark.parametrize("corpus", ["embedded", "auto"])
def test_what_keeps_a_run_from_beginning_is_a_row_until_it_begins(tmp_path, monkeypatch, corpus):
    def gone(*_):
        raise CorpusUnavailableError("no text")

    def fails():
        with monkeypatch.context() as patch:
            patch.setattr("normlab.training.trainer.load_tokens", gone)
            with pytest.raises(CorpusUnavailableError):
                train(config, ["seed=0"])
        return [Run(path) for path in tmp_path.iterdir()]

    monkeypatch.setattr("normlab.data.corpus._wikitext", gone)  # so that auto is the embedded text
    scripted(monkeypatch)
    config = loop_config(tmp_path, data={"corpus": corpus, "vocab_size": 300})
    (row,) = fails()
    assert row.record == {"state": "refused", "reason": "CorpusUnavailableError: no text"}
    assert row.read("overrides.yaml") == ["seed=0"]
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
    assert {p.name for p in run.directory.iterdir()} == {
        "overrides.yaml",
        "config.yaml",
        "record.json",
    }
