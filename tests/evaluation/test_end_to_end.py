"""`python -m evaluate` from end to end, on a tiny run of the embedded text."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.commands.evaluate import perplexities
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.progress import Progress
from normlab.results import RecordFile
from normlab.runs.run import Run
from normlab.training.trainer import train
from tests.support.runs import tiny_config

pytestmark = pytest.mark.system
COLUMNS = ("fp32", "fp16:sequential", "fp16:pairwise+slanc", "fp16+calibrated")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two steps, and the same as if it had diverged."""
    folder = tmp_path_factory.mktemp("runs")
    few = {"steps": 2, "eval_every": 2, "window": 16, "optimizer": {"warmup": 0}}
    train(tiny_config(folder, run=str(folder / "a"), norm={"type": "layernorm"}, **few))
    shutil.copytree(folder / "a", folder / "c")
    run = Run(folder / "c")
    run.write("record.json", run.record | {"state": "diverged"})
    return folder


def ask(out, **fields):
    given = {"precision": COLUMNS, "max_windows": 6, "batch": 4, "out": str(out)}
    return EvaluateConfig(**(given | fields))


def test_a_directory_of_runs_becomes_a_table(runs, tmp_path):
    perplexities(ask(tmp_path, runs=str(runs)))
    records = RecordFile(tmp_path / "records.jsonl").read()
    found = {(r.model.name, r.precision): r for r in records}
    assert len(found) == len(records) == 2 * len(COLUMNS)
    assert {r.status for r in records if r.model.name == "c"} == {"diverged"}
    wide, low, slanc, calibrated = (found["a", text] for text in COLUMNS)
    assert low.comparison.delta == low.result.perplexity - wide.result.perplexity != 0
    assert low.text.tokens_scored == 6 * 15 == sum(low.result.window_tokens)
    assert low.ranges.rows == 6 * 15 * 5
    assert len({slanc.provenance.scales_sha256, calibrated.provenance.scales_sha256, None}) == 3
    seen = calibrated.provenance.calibration
    assert (seen["split"], seen["windows"], seen["length"]) == ("valid", 8, 15)
    assert calibrated.ranges.overflowed_rows == 0
    assert (low.text.protocol, low.text.window, low.text.dataset) == ("window", 16, "embedded")
    done = evaluate(ask(tmp_path, run=str(runs / "c"), precision=("fp32",)))
    assert [r.model.note for r in done] == [f"step {done[0].model.facts['step']} of 2, diverged"]
    assert done[0].result.perplexity == wide.result.perplexity


@pytest.mark.parametrize("protocol", ["gptq", "llamacpp", "lm-eval", "stride"])
def test_the_other_protocols(runs, tmp_path, protocol):
    asked = {"protocol": protocol, "window": 20, "precision": ("fp32",)}
    (record,) = evaluate(ask(tmp_path, run=str(runs / "a"), **asked))
    assert (record.text.protocol, record.text.windows) == (protocol, 6)
    assert record.result.word_perplexity > record.result.perplexity > 1


def test_an_evaluation_that_was_cut_off_goes_on(runs, tmp_path, monkeypatch, capsys):
    columns = ("fp32", "fp16", "fp8_e5m2")
    asked = {"run": str(runs / "a"), "precision": columns, "compare": True, "batch": 1}
    alone = evaluate(ask(tmp_path / "alone", **asked))
    monkeypatch.setattr("normlab.evaluation.partial_results.EVERY", 0.0)
    update = Progress.update

    def killed(self, done, shown):
        update(self, done, shown)
        if done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(ask(tmp_path / "cut", **asked))
    assert not (tmp_path / "cut" / "records.jsonl").exists()
    again = evaluate(ask(tmp_path / "cut", **asked))
    assert "goes on after the first 3 windows" in capsys.readouterr().out
    assert [r.to_json() for r in again] == [r.to_json() for r in alone]
    assert not list((tmp_path / "cut" / "unfinished").iterdir())


def test_the_command_line(runs, tmp_path):
    """As it stands in the design, errors included."""
    command = [sys.executable, "-m", "evaluate", f"run={runs / 'a'}", f"out={tmp_path}"]
    more = ["precision=[fp32,fp16:lanes8]", "data=embedded", "split=valid", "max_windows=3"]
    where = Path(__file__).parent.parent.parent
    done = subprocess.run([*command, *more], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table.md").read_text() in done.stdout  # in a pipe
    assert "fp16:lanes8" in done.stdout
    written = {name for name in os.listdir(tmp_path) if not name.startswith(".")}  # but the lock
    assert written == {"table.md", "table.csv", "table.tex", "records.jsonl"}
    wrong = [*command, "pretrained=smollm2-135m"]
    done = subprocess.run(wrong, cwd=where, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected exactly one of" in done.stderr
    assert "Traceback" not in done.stderr
