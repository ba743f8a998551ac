"""`python -m evaluate runs=DIR`: a damaged or half-made run is a row, and the others go on."""

import re
import shutil

import pytest

from normlab.commands.evaluate import perplexities
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.results import RecordFile
from normlab.training.trainer import train
from tests.support.runs import tiny_config

pytestmark = pytest.mark.system


def emptied(run):
    for file in (run / "checkpoints").rglob("*"):
        if file.is_file() and "params" in file.parts:
            file.write_bytes(b"")


def replaced(name, content):
    """A file or directory with another content; None takes it away."""

    def damage(run):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if content is not None:
            path.write_text(content)

    return damage


METRICS = "checkpoints/2/metrics/metrics"
BAD = {
    "emptied": (emptied, "unreadable: checkpoint "),
    "gone": (replaced("checkpoints", None), "unreadable: .*has no checkpoint yet"),
    "no-metrics": (replaced(METRICS, None), "unreadable: checkpoint .*best"),
    "empty-metrics": (replaced(METRICS, ""), "unreadable: checkpoint .*best"),
    "no-tokenizer": (replaced("tokenizer", None), "unreadable: .*No such file"),
    "record": (replaced("record.json", ""), "unreadable: .*record.json can't be read"),
}


def test_a_damaged_or_half_made_run_is_a_row_and_the_others_go_on(tmp_path):
    few = {"steps": 2, "eval_every": 2, "window": 16, "optimizer": {"warmup": 0}}
    train(tiny_config(tmp_path, run=str(tmp_path / "runs" / "whole"), **few))
    for name, (damage, _) in BAD.items():
        shutil.copytree(tmp_path / "runs" / "whole", tmp_path / "runs" / name)
        damage(tmp_path / "runs" / name)
    few = {"max_windows": 6, "batch": 4, "precision": ("fp32",), "out": str(tmp_path / "out")}
    asked = EvaluateConfig(runs=str(tmp_path / "runs"), **few)
    perplexities(asked)
    records = RecordFile(tmp_path / "out" / "records.jsonl").read()
    found = {record.model.name: record for record in records}
    assert found["whole"].status == "ok"
    for name, (_, said) in BAD.items():
        assert re.match(said, found[name].status), found[name].status
        assert (found[name].model.norm, found[name].result.perplexity) == ("rmsnorm", None)
    assert {r.key for r in evaluate(asked)} == {r.key for r in records}
    with pytest.raises(ValueError, match="can't be read"):
        evaluate(EvaluateConfig(run=str(tmp_path / "runs" / "emptied"), **few))
