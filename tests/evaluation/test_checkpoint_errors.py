"""`python -m evaluate runs=DIR`: a damaged or half-made run is a row, and the others go on."""

import re
import shutil

import pytest

from evaluate.__main__ import main
from evaluate.config import EvaluateConfig
from evaluate.job import evaluate
from normlab.results import RecordFile
from normlab.run import Run
from tests.support.runs import tiny_config
from train.loop import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    model = {"layers": 1, "width": 16, "heads": 2, "max_length": 64}
    few = {"steps": 2, "eval_every": 2, "window": 16, "optimizer": {"warmup": 0}}
    train(tiny_config(folder, run=str(folder / "a"), model=model, **few))
    return folder


def ask(out, **fields):
    return EvaluateConfig(max_windows=6, batch=4, precision=("fp32",), out=str(out), **fields)


def test_a_run_whose_checkpoint_cannot_be_read_is_a_row_beside_the_others(runs, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copytree(runs / "a", tmp_path / "runs" / name)
    for file in (tmp_path / "runs" / "b" / "checkpoints").rglob("*"):
        if file.is_file() and "params" in file.parts:
            file.write_bytes(b"")
    shutil.rmtree(tmp_path / "runs" / "c" / "checkpoints")
    asked = ask(tmp_path / "out", runs=str(tmp_path / "runs"))
    whole, damaged, gone = evaluate(asked)
    assert (whole.model, whole.status) == ("a", "ok")
    assert damaged.status.startswith("unreadable: checkpoint ")
    assert gone.status.startswith("unreadable: ")
    assert "has no checkpoint yet" in gone.status
    assert (damaged.norm, damaged.perplexity) == ("rmsnorm", None)
    assert [r.key for r in evaluate(asked)] == [whole.key, damaged.key, gone.key]
    with pytest.raises(ValueError, match="can't be read"):
        evaluate(ask(tmp_path / "out", checkpoint=str(tmp_path / "runs" / "b")))


def changed(run, name, content):
    """A file of a run with another content; None takes it away."""
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if content is not None:
        path.write_text(content)


CARD = "tokenizer/tokenizer_card.json"


def encoder(run):
    config = Run(run).read("config.yaml")
    Run(run).write("config.yaml", config | {"model": config["model"] | {"causal": False}})


def of_a_norm_that_left(run):
    """As where a norm of one's own lies on another branch."""
    config = Run(run).read("config.yaml")
    Run(run).write("config.yaml", config | {"norm": {"type": "gone"}})


BAD = {
    "no-card": (lambda r: changed(r, CARD, None), "unreadable: .*card"),
    "half-card": (lambda r: changed(r, CARD, '{"k'), "unreadable: .*card"),
    "no-hash": (lambda r: changed(r, CARD, "{}"), "unreadable: .*card"),
    "words": (lambda r: changed(r, "tokenizer/tokenizer.json", "{}"), "unreadable: .*changed"),
    "no-tokenizer": (lambda r: changed(r, "tokenizer", None), "unreadable: .*No such file"),
    "record": (lambda r: changed(r, "record.json", ""), "unreadable: .*record.json can't be read"),
    "provenance": (lambda r: changed(r, "provenance.json", ""), "unreadable: .*provenance.json"),
    "config": (lambda r: changed(r, "config.yaml", ""), "unreadable: .*config.yaml has no model"),
    "no-metrics": (
        lambda r: changed(r, "checkpoints/2/metrics/metrics", None), "unreadable: checkpoint .*best"
    ),
    "empty-metrics": (
        lambda r: changed(r, "checkpoints/2/metrics/metrics", ""), "unreadable: checkpoint .*best"
    ),
    "norm": (of_a_norm_that_left, "unreadable: unknown norm 'gone'"),
    "encoder": (encoder, "an encoder, which has no perplexity"),
}  # fmt: skip


def test_a_damaged_or_half_made_run_is_a_row_and_the_others_go_on(runs, tmp_path):
    for name in ("whole", "young", *BAD):
        shutil.copytree(runs / "a", tmp_path / "runs" / name)
    for name, (damage, _) in BAD.items():
        damage(tmp_path / "runs" / name)
    young = Run(tmp_path / "runs" / "young")  # killed before it had saved its tokenizer
    young.write("record.json", {"state": "running"})
    changed(young.directory, CARD, None)
    main(ask(tmp_path / "out", runs=str(tmp_path / "runs")))
    found = {r.model: r for r in RecordFile(tmp_path / "out" / "records.jsonl").read()}
    assert (found["whole"].status, found["young"].status) == ("ok", "unfinished")
    for name, (_, said) in BAD.items():
        assert re.match(said, found[name].status), found[name].status
        assert found[name].norm == {"config": None, "norm": "gone"}.get(name, "rmsnorm")
    with pytest.raises(ValueError, match="is an encoder, which has no perplexity"):
        evaluate(ask(tmp_path / "out", checkpoint=str(tmp_path / "runs" / "encoder")))


def test_of_a_run_without_a_tokenizer_no_text_is_looked_up(runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "a", tmp_path / "runs" / "a")
    changed(tmp_path / "runs" / "a", "tokenizer", None)
    run = Run(tmp_path / "runs" / "a")
    run.write("record.json", {"state": "failed", "reason": "refused"})
    run.write("config.yaml", run.read("config.yaml") | {"data": {"corpus": "auto"}})
    monkeypatch.setattr("evaluate.texts.load_corpus", None)
    (record,) = evaluate(ask(tmp_path / "out", runs=str(tmp_path / "runs")))
    assert record.status == "failed: refused"
