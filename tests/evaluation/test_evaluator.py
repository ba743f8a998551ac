"""`python -m evaluate` from end to end, on tiny runs of the embedded text."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from evaluate import facts
from evaluate.__main__ import main
from evaluate.config import EvaluateConfig, TextConfig
from evaluate.job import evaluate
from evaluate.subjects import subjects
from evaluate.texts import Texts, calibration_tokens
from normlab.config import build
from normlab.data import Corpus, DataConfig
from normlab.model import ModelConfig, PlacementConfig
from normlab.norms import norms
from normlab.progress import Progress
from normlab.results import RecordFile
from normlab.run import Run
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder
from train.config import TrainConfig
from train.loop import train
from train.optimizer import OptimizerConfig

PRECISIONS = ("fp32", "fp16:sequential", "fp16:pairwise+slanc")
TOKENS = {"bpe": {"vocab_size": 300}, "word": {"tokenizer": "word"}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs of two steps (LayerNorm, DyT, words), one diverged, one killed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, norm, tokenizer in (("a", "layernorm", "bpe"), ("b", "dyt", "bpe")):
        train(_config(folder / name, norm, tokenizer))
    for name, state in (("c", "diverged"), ("d", "running")):
        shutil.copytree(folder / "a", folder / name)
        run = Run(folder / name)
        run.write("record.json", run.record | {"state": state})
    return folder


def _config(run, norm, tokenizer, window=16):
    return TrainConfig(
        model=ModelConfig(layers=1, width=16, heads=2, max_length=64),
        norm=norms[norm].Config(),
        placement=PlacementConfig(),
        data=DataConfig(corpus="embedded", **TOKENS[tokenizer]),
        optimizer=OptimizerConfig(warmup=0),
        steps=2, batch=2, window=window, eval_every=2, eval_windows=2, run=str(run),
    )  # fmt: skip


@pytest.fixture(scope="module")
def word_run(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("words") / "w"
    train(_config(folder, "rmsnorm", "word"))
    return folder


def ask(out, **fields):
    given = {"precision": PRECISIONS, "max_windows": 6, "batch": 4, "out": str(out)}
    return EvaluateConfig(**(given | fields))


def test_a_directory_of_runs_becomes_a_table(runs, tmp_path):
    main(ask(tmp_path, runs=str(runs)))
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    found = {(r["model"], r["precision"]): r for r in records}
    assert len(found) == len(records) == 4 * 3
    assert [found[m, PRECISIONS[1]]["status"] for m in "abcd"] == [
        "ok", "n/a", "diverged", "unfinished",
    ]  # fmt: skip
    texts = [r["facts"]["training_provenance"]["corpus"]["name"] for r in records]
    assert set(texts) == {"embedded"}  # seeds stay together whatever became of them
    low = found["a", "fp16:sequential"]
    assert low["delta"] == low["perplexity"] - found["a", "fp32"]["perplexity"]
    assert low["perplexity"] == pytest.approx(math.exp(low["sum_nll"] / low["tokens_scored"]))
    assert low["sum_nll"] == pytest.approx(sum(low["window_nll"]), rel=1e-12)
    assert low["tokens_scored"] == 6 * 15 == sum(low["window_tokens"])
    assert low["rows"] == 6 * 15 * 3
    assert found["a", PRECISIONS[2]]["scales_sha256"]
    assert found["a", "fp32"]["delta"] == 0.0
    assert (low["protocol"], low["window"], low["dataset"]) == ("window", 16, "embedded")
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [r["model"] for r in rows] == ["a", "b", "c", "d"]
    assert [r["fp16:sequential status"] for r in rows] == ["ok", "n/a", "diverged", "unfinished"]
    for name in ("table.md", "table.tex"):
        assert "diverged" in (tmp_path / name).read_text()


def test_a_second_call_computes_nothing_and_a_new_column_only_itself(runs, tmp_path, monkeypatch):
    first = evaluate(ask(tmp_path, checkpoint=str(runs / "a")))
    lines = (tmp_path / "records.jsonl").read_text()
    monkeypatch.setattr("evaluate.job.score_columns", None)
    again = evaluate(ask(tmp_path, checkpoint=str(runs / "a")))
    assert [r.to_json() for r in again] == [r.to_json() for r in first]
    assert (tmp_path / "records.jsonl").read_text() == lines
    monkeypatch.undo()
    more = evaluate(ask(tmp_path, checkpoint=str(runs / "a"), precision=("fp32", "bf16")))
    assert more[0].to_json() == first[0].to_json()
    assert len(RecordFile(tmp_path / "records.jsonl").read()) == 4


def test_a_checkpoint_of_a_run_that_goes_on_is_marked(runs, tmp_path):
    main(ask(tmp_path, checkpoint=str(runs / "d"), precision=("fp32",)))
    (record,) = RecordFile(tmp_path / "records.jsonl").read()
    said = f"step {record.facts['step']} of 2"  # its best one
    assert (record.status, record.note) == ("ok", f"{said}, unfinished")
    assert f"d: {said}, unfinished." in (tmp_path / "table.md").read_text()
    (diverged,) = evaluate(ask(tmp_path, checkpoint=str(runs / "c"), precision=("fp32",)))
    assert diverged.note == f"{said}, diverged"
    (done,) = evaluate(ask(tmp_path, checkpoint=str(runs / "a"), precision=("fp32",)))
    assert done.note is None


def test_runs_one_level_down_are_named(runs, tmp_path):
    for name in ("y", "x"):
        (tmp_path / name).mkdir()
        shutil.copytree(runs / "a", tmp_path / name / "a")
    (tmp_path / "empty").mkdir()
    where = re.escape(f"below it: runs={tmp_path}/x, runs={tmp_path}/y") + "$"
    with pytest.raises(FileNotFoundError, match=where):
        evaluate(ask(tmp_path / "out", runs=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"it is one: say checkpoint=.*x/a$"):
        evaluate(ask(tmp_path / "out", runs=str(tmp_path / "x" / "a")))
    with pytest.raises(FileNotFoundError, match=r"config\.yaml.*say checkpoint=DIR"):
        evaluate(ask(tmp_path / "out", runs=str(tmp_path / "empty")))


def test_a_pretrained_package_says_which_file_it_is():
    note = facts.note({"source": "cache/SmolLM2-135M-Instruct.Q4_1.gguf", "family": "llama"})
    assert note == "SmolLM2-135M-Instruct, quantized Q4_1"
    assert facts.note({"source": "models/own", "family": "llama"}) is None


def test_whatever_a_result_depends_on_makes_another_record(runs, tmp_path):
    asked = {"precision": ("fp32",)}
    keys = [
        evaluate(ask(tmp_path, checkpoint=str(runs / "a"), **asked | more))[0].key
        for more in (
            {}, {"max_windows": 5}, {"window": 12}, {"split": "valid"}, {"protocol": "stride"},
            {"batch": 3},
        )
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_another_prefix_makes_another_record_where_pages_begin_with_it(runs, tmp_path):
    """The tokenizer's hash knows nothing of it."""
    shutil.copytree(runs / "a", tmp_path / "a")
    card = tmp_path / "a" / "tokenizer" / "tokenizer_card.json"
    found = []
    for prefix in (5, 7):
        card.write_text(json.dumps(json.loads(card.read_text()) | {"prefix": prefix}))
        asked = {"checkpoint": str(tmp_path / "a"), "precision": ("fp32",)}
        for protocol in ("lm-eval", "window"):
            found += evaluate(ask(tmp_path / "out", protocol=protocol, **asked))
    paged, plain, again, same = found
    assert paged.tokenizer_hash == again.tokenizer_hash
    assert (again.key != paged.key, same.key) == (True, plain.key)
    assert again.perplexity != paged.perplexity


def test_windows_of_another_prefix_are_cut_anew(runs):
    run = Run(runs / "a")
    (subject,) = subjects(config := ask("", checkpoint=str(run.directory), protocol="lm-eval"))
    texts, tokenizer = Texts(), subject.tokenizer()
    before = texts.windows(subject, config, tokenizer)
    tokenizer.prefix = 7
    assert texts.windows(subject, config, tokenizer).inputs[0, 0] == 7 != before.inputs[0, 0]


def test_another_text_to_calibrate_on_makes_another_record(runs, tmp_path, monkeypatch):
    sha256, said = Corpus.sha256, {"valid": "one"}
    monkeypatch.setattr(Corpus, "sha256", lambda self, s: said.get(s) or sha256(self, s))
    asked = {"checkpoint": str(runs / "a"), "precision": ("fp16+calibrated", "fp16+slanc")}
    first = evaluate(ask(tmp_path, **asked))
    said["valid"] = "another"
    second = evaluate(ask(tmp_path, **asked))
    assert [a.key == b.key for a, b in zip(first, second, strict=True)] == [False, True]


def test_each_tokens_nll_is_kept_where_it_is_asked_for(runs, tmp_path):
    evaluate(ask(tmp_path, checkpoint=str(runs / "a")))
    kept = evaluate(ask(tmp_path, checkpoint=str(runs / "a"), per_token=True))
    for record in kept:
        with np.load(tmp_path / str(record.token_nll_file)) as file:
            assert len(file["nll"]) == len(file["tokens"]) == record.tokens_scored
            assert file["nll"].sum(dtype=np.float64) == pytest.approx(record.sum_nll)


def test_tokens_are_compared_with_fp32_where_it_is_asked_for(runs, tmp_path, monkeypatch):
    asked = {"checkpoint": str(runs / "a"), "precision": ("fp32", "fp8_e5m2:sequential", "fp16")}
    plain = evaluate(ask(tmp_path, **asked))
    assert [r.kl_mean for r in plain] == [None] * 3
    wide, low, half = evaluate(ask(tmp_path, compare=True, **asked))
    assert (wide.key, wide.kl_mean, wide.top1_agreement) == (plain[0].key, None, None)
    assert low.sum_nll == pytest.approx(plain[1].sum_nll, rel=1e-5)
    assert 0 < half.kl_mean < low.kl_mean < low.kl_max
    assert 0 < half.token_delta_mean < low.token_delta_mean < low.token_delta_max
    assert low.top1_agreement <= half.top1_agreement <= 1
    window, position = low.token_delta_max_at
    assert (window < 6, position < 16) == (True, True)
    monkeypatch.setattr("evaluate.job.score_columns", None)
    again = evaluate(ask(tmp_path, compare=True, **asked))
    assert [r.to_json() for r in again] == [r.to_json() for r in (wide, low, half)]


def test_what_an_earlier_call_kept_stays(runs, tmp_path):
    asked = {"checkpoint": str(runs / "a"), "precision": ("fp32", "fp16")}
    plain = evaluate(ask(tmp_path, **asked))[1]
    compared = evaluate(ask(tmp_path, compare=True, **asked))[1]
    assert compared.seconds == plain.seconds
    both = evaluate(ask(tmp_path, per_token=True, **asked))[1]
    for name in ("token_delta_mean", "token_delta_max_at", "top1_agreement", "kl_mean", "kl_max"):
        assert getattr(both, name) == getattr(compared, name) is not None
    evaluate(ask(tmp_path / "other", per_token=True, **asked))
    other = evaluate(ask(tmp_path / "other", compare=True, **asked))[1]
    assert (other.token_nll_file, other.kl_mean) == (both.token_nll_file, both.kl_mean)
    assert (tmp_path / "other" / str(other.token_nll_file)).exists()


def test_the_batch_is_the_one_that_is_run(runs, tmp_path, monkeypatch):
    """On two devices of a mesh a batch of 3 is one of 4."""
    monkeypatch.setattr("evaluate.facts.divisible", lambda size: size + size % 2)
    asked = ask(tmp_path, checkpoint=str(runs / "a"), precision=("fp32",), batch=3)
    (record,) = evaluate(asked)
    assert record.batch == 4


def test_the_spread_of_an_earlier_call_does_not_stay(runs, tmp_path):
    (tmp_path / "spread.md").write_text("of other runs")
    main(ask(tmp_path, checkpoint=str(runs / "a"), precision=("fp32",)))
    assert not (tmp_path / "spread.md").exists()


def test_fp32_is_run_even_where_it_is_no_column(runs, tmp_path):
    (record,) = evaluate(ask(tmp_path, checkpoint=str(runs / "a"), precision=("fp16",)))
    assert record.precision == "fp16"
    assert math.isfinite(record.delta_stderr)
    assert [r.precision for r in RecordFile(tmp_path / "records.jsonl").read()] == ["fp32", "fp16"]


def test_a_rule_that_looks_at_text_takes_the_validation_split(runs, tmp_path):
    asked = ask(tmp_path, checkpoint=str(runs / "a"), precision=("fp16+calibrated",))
    (record,) = evaluate(asked)
    assert record.calibration["split"] == "valid"
    assert (record.calibration["windows"], record.calibration["length"]) == (8, 15)
    assert record.overflowed_rows == 0


def test_the_calibration_text_is_cut_once(runs, tmp_path, monkeypatch):
    cuts = []

    def cut(*given):
        cuts.append(given)
        return calibration_tokens(*given)

    monkeypatch.setattr("evaluate.job.calibration_tokens", cut)
    both = ("fp16+calibrated", "fp16+calibrated_max.pow2")
    first, second = evaluate(ask(tmp_path, checkpoint=str(runs / "a"), precision=both))
    assert first.calibration == second.calibration
    assert len(cuts) == 1


@pytest.mark.system
def test_a_word_level_model_is_read_by_the_word_protocol(word_run, tmp_path):
    (record,) = evaluate(ask(tmp_path, checkpoint=str(word_run), precision=("fp32",)))
    assert record.protocol == "word"
    assert record.tokenizer.startswith("word-")


@pytest.mark.parametrize("protocol", ["gptq", "llamacpp", "lm-eval", "stride"])
def test_the_other_protocols(runs, tmp_path, protocol):
    asked = {"protocol": protocol, "window": 20, "precision": ("fp32",)}
    (record,) = evaluate(ask(tmp_path, checkpoint=str(runs / "a"), **asked))
    assert record.protocol == protocol
    assert record.windows == 6
    assert record.word_perplexity > record.perplexity > 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"checkpoint": "nowhere"}, r"nowhere is no run directory"),
        ({"runs": "nowhere"}, r"runs=nowhere: no such directory"),
        ({"model": "smollm2-135n"}, r"smollm2-135n.*Did you mean 'smollm2-135m'"),
        ({"model": "hf:nowhere"}, "nowhere"),
        ({"window": 65}, r"window = 65 .*longest window that fits is window=64"),
        ({"protocol": "gptq"}, r"window = 2048 tokens \(protocol=gptq\).*window=64"),
        ({"protocol": "word"}, "expected a model of data.tokenizer=word"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_loaded(
    runs, tmp_path, monkeypatch, fields, message
):
    monkeypatch.setattr("evaluate.subjects.load", None)
    monkeypatch.setattr("evaluate.texts.load_corpus", None)
    if not {"checkpoint", "runs", "model"} & set(fields):
        fields = {"checkpoint": str(runs / "a")} | fields
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(ask(tmp_path, **fields))
    assert not list(tmp_path.iterdir())


def test_another_text_may_be_asked_for(runs, tmp_path, monkeypatch):
    monkeypatch.delenv("NORMLAB_DATA", raising=False)
    text = TextConfig(corpus="wikitext2", root=str(tmp_path))
    with pytest.raises(OSError, match="wikitext2"):
        evaluate(ask(tmp_path, checkpoint=str(runs / "a"), data=text))


def test_the_command_line(runs, tmp_path):
    """As it stands in the design, errors included."""
    command = [sys.executable, "-m", "evaluate", f"checkpoint={runs / 'a'}", f"out={tmp_path}"]
    more = ["precision=[fp32,fp16:lanes(8)]", "data=embedded", "split=valid", "max_windows=3"]
    where = Path(__file__).parent.parent.parent
    done = subprocess.run([*command, *more], cwd=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table.md").read_text() in done.stdout  # in a pipe
    assert "fp16:lanes(8)" in done.stdout
    assert {"table.md", "table.csv", "table.tex", "records.jsonl"} == set(os.listdir(tmp_path))
    wrong = [*command, "model=smollm2-135m"]
    done = subprocess.run(wrong, cwd=where, capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected exactly one of" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_config_is_what_yaml_builds():
    built = build(EvaluateConfig, {"runs": "r", "precision": ["fp32"], "data": {"root": "x"}})
    assert built == EvaluateConfig(runs="r", precision=("fp32",), data=TextConfig(root="x"))


def test_a_pretrained_checkpoint_is_a_row_and_its_second_call_reuses_it(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    spec = write_folder(tmp_path / "m", CONFIGS["llama"], tensors("llama"))
    config = EvaluateConfig(
        model=spec, precision=PRECISIONS, window=32, max_windows=2, out=str(tmp_path / "out"),
        data=TextConfig(corpus="embedded"),
    )  # fmt: skip
    records = evaluate(config)
    assert [r.norm for r in records] == ["rmsnorm"] * 3
    assert all(math.isfinite(r.perplexity) for r in records)
    written = (tmp_path / "out" / "records.jsonl").read_bytes()
    assert [r.key for r in evaluate(config)] == [r.key for r in records]
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == written


def test_an_encoder_has_no_perplexity_and_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    from normlab import pretrained

    configs = types.SimpleNamespace(model=ModelConfig(causal=False))
    found = types.SimpleNamespace(configs=configs)
    monkeypatch.setattr(pretrained, "describe", lambda spec: found)
    with pytest.raises(ValueError, match="model=encoder is an encoder, which has no perplexity"):
        evaluate(EvaluateConfig(model="encoder", out=str(tmp_path / "out")))


def test_an_evaluation_that_was_cut_off_goes_on(runs, tmp_path, monkeypatch, capsys):
    columns = ("fp32", "fp16", "fp8_e5m2")
    asked = {"checkpoint": str(runs / "a"), "precision": columns, "compare": True, "batch": 1}
    alone = evaluate(ask(tmp_path / "alone", **asked))
    monkeypatch.setattr("normlab.unfinished.EVERY", 0.0)
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
    assert "goes on behind the first 3 windows" in capsys.readouterr().out
    assert [r.to_json() for r in again] == [r.to_json() for r in alone]
    assert not list((tmp_path / "cut" / "unfinished").iterdir())


@pytest.mark.system
def test_other_columns_do_not_go_on(runs, tmp_path, monkeypatch):
    """What was cut off is one set of columns at one batch size."""
    made = []
    monkeypatch.setattr("evaluate.job.Unfinished", lambda path: made.append(path) or None)
    for columns, batch in [(("fp16",), 1), (("fp16", "bf16"), 1), (("fp16",), 2), (("fp16",), 1)]:
        asked = {"checkpoint": str(runs / "a"), "precision": columns, "compare": True}
        (tmp_path / "records.jsonl").unlink(missing_ok=True)
        evaluate(ask(tmp_path, batch=batch, **asked))
    assert made[0] == made[3]
    assert len(set(made)) == 3
