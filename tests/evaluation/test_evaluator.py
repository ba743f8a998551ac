"""Evaluations: one in earnest against float64 NumPy, and what is kept, reused and told apart."""

import csv
import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest

from normlab.commands.evaluate import perplexities
from normlab.commands.remove import one_removal
from normlab.data import Corpus
from normlab.evaluation import evaluate, table
from normlab.evaluation import metadata as facts
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.protocols import protocols
from normlab.results import RecordFile
from normlab.runs.run import Run
from normlab.training.removal import RemoveConfig
from tests.support.scored_windows import BATCH, LENGTH, HalfReference, expected, loud
from tests.support.transformer_reference import Reference
from tests.support.unscored import CORPUS, TEXTS, made_run, untrained


def check_record(record, out, windows, nll, wide, kl):
    """One column against float64: a sum of halves now and then falls to the other side."""
    off = 2e-5 if record.precision == "fp32" else 5e-3
    with np.load(out / record.result.token_nll_file) as file:
        wrong = np.abs(file["nll"] - nll[windows.scored])
        assert file["tokens"].tolist() == windows.targets[windows.scored].tolist()
    assert (wrong.max() < off, np.median(wrong) < 2e-5) == (True, True)
    close = partial(pytest.approx, rel=off / 2, abs=off / 20)
    total, delta = nll.sum(), (nll - wide)[windows.scored]
    result, comparison = record.result, record.comparison
    assert result.window_nll == close(nll.sum(1).tolist())
    assert result.sum_nll == pytest.approx(sum(result.window_nll), rel=1e-12)
    assert result.perplexity == close(math.exp(total / windows.counts.sum()))
    assert result.word_perplexity == close(math.exp(total / windows.words.sum()))
    if windows.bytes.any():
        assert result.bits_per_byte == close(total / windows.bytes.sum() / math.log(2))
    else:  # words that the vocabulary lacks
        assert result.bits_per_byte is None
    if record.precision != "fp32":
        assert comparison.token_delta_mean == close(np.abs(delta).mean())
        assert comparison.token_delta_max == close(np.abs(delta).max())
        assert (comparison.kl_mean, comparison.kl_max) == (close(kl.mean()), close(kl.max()))


@pytest.mark.system
def test_three_columns_are_those_of_float64(tmp_path, monkeypatch, capsys):
    """A word-level run of the tests' model, as loud as FP16 can't bear it."""
    run, out = made_run(tmp_path / "w", tokenizer="word"), tmp_path / "out"
    lm = untrained(run.directory)
    model = loud(lm.model, 60.0)
    monkeypatch.setattr("normlab.evaluation.texts.load_corpus", lambda data: CORPUS)
    monkeypatch.setattr(
        "normlab.evaluation.targets.load", lambda *_: dataclasses.replace(lm, model=model)
    )
    out.mkdir()
    (out / "spread.md").write_text("of other runs")
    asked = {"window": LENGTH + 1, "max_windows": 8, "batch": BATCH, "out": str(out)}
    columns = ("fp32", "fp16:sequential", "fp16:pairwise+slanc")
    asked |= {"precision": columns, "compare": True, "per_token": True}
    perplexities(EvaluateConfig(run=str(run.directory), **asked))
    assert not (out / "spread.md").exists()
    assert (out / "table.md").read_text() in capsys.readouterr().out
    records = RecordFile(out / "records.jsonl").read()
    assert [(r.precision, r.text.protocol) for r in records] == [(text, "word") for text in columns]
    windows = protocols["word"].windows(TEXTS["test"], lm.tokenizer, LENGTH + 1, 8)
    scales = {site: seen["scale"] for site, seen in records[2].ranges.sites.items()}
    low = [HalfReference(model, "sequential"), HalfReference(model, "pairwise", scales)]
    wide, logp = expected(Reference(model), windows)
    for record, reference in zip(records, [Reference(model), *low], strict=True):
        nll, other = expected(reference, windows)
        kl = (np.exp(logp) * (logp - other)).sum(-1)[windows.scored]
        check_record(record, out, windows, nll, wide, kl)
        seen = getattr(reference, "overflowed", 0)
        sites = record.ranges.sites.values()
        assert record.ranges.overflowed_rows == seen == sum(s["overflowed"] for s in sites)
        assert record.comparison.delta == record.result.perplexity - records[0].result.perplexity
    assert records[1].ranges.overflowed_rows > 0 == records[2].ranges.overflowed_rows
    assert abs(records[2].comparison.delta) < 0.1 < abs(records[1].comparison.delta)


# --- what is kept, reused and told apart; nothing is computed


def ask(run, out, *precision, **fields):
    given = {"max_windows": 6, "batch": 4, "precision": precision or ("fp32",), "out": str(out)}
    return EvaluateConfig(**{"run": str(run.directory)} | given | fields)


def test_a_second_call_computes_nothing_and_a_new_column_only_itself(run, made_up, tmp_path):
    asked = partial(ask, run, tmp_path / "out")
    first = evaluate(asked("fp16", "fp16:sequential"))
    assert [r.precision for r in first] == ["fp16", "fp16:sequential"]
    assert made_up.calls == [["fp32"], ["fp16"], ["fp16:sequential"]]  # Δ refers to the first
    assert all(math.isfinite(r.comparison.delta_stderr) for r in first)
    wide = evaluate(asked())[0].result
    assert first[0].comparison.delta == first[0].result.perplexity - wide.perplexity
    file = tmp_path / "out" / "records.jsonl"
    written = file.read_text()
    again = evaluate(asked("fp16", "fp16:sequential"))
    assert [r.to_json() for r in again] == [r.to_json() for r in first]
    assert (file.read_text(), len(made_up.calls)) == (written, 3)
    evaluate(asked("fp32", "bf16"))
    assert made_up.calls[3:] == [["bf16"]]
    assert len(RecordFile(file).read()) == 4


def test_a_table_in_memory_is_that_of_the_command(run, made_up, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ask(run, tmp_path / "out", "fp32", "fp16")
    records, frame = table(
        run=asked.run, precision=["fp32", "fp16"], max_windows=6, batch=4, split="test"
    )
    kept = evaluate(asked)
    assert [r.key for r in records] == [r.key for r in kept]
    assert frame["perplexity"].tolist() == [r.result.perplexity for r in kept]
    assert frame["precision"].tolist() == ["fp32", "fp16"]
    assert not (tmp_path / "results").exists()
    with pytest.raises(ValueError, match="unknown key .* 'precison'. Did you mean 'precision'"):
        table(precison="fp32")


def test_a_file_where_results_should_go_is_told_before_anything_is_computed(
    run, made_up, tmp_path, monkeypatch
):
    monkeypatch.setattr("normlab.training.removal.load", lambda _: pytest.fail("was loaded"))
    (tmp_path / "out").write_text("here already")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(NotADirectoryError, match=f"out={out}: a file lies there; expected a d"):
            evaluate(ask(run, out))
        with pytest.raises(NotADirectoryError, match=f"out={out}: a file lies there; expected a d"):
            one_removal(RemoveConfig(run=str(run.directory), out=str(out)), ())
        with pytest.raises(NotADirectoryError, match=f"run={out}/a: a file lies there"):
            Run(out / "a").locked().__enter__()
    assert not made_up.calls


@pytest.mark.system
def test_whatever_a_result_depends_on_makes_another_record(run, tmp_path, monkeypatch):
    def key(**fields):
        return evaluate(ask(run, tmp_path / "out", **fields))[0].key

    changes = (
        {"max_windows": 5}, {"window": 12}, {"split": "valid"}, {"protocol": "stride"},
        {"batch": 3}, {"precision": ("fp16",)}, {"transform": ("rescale:0.5",)},
    )  # fmt: skip
    keys = [key(), *(key(**change) for change in changes)]
    assert len(set(keys)) == len(keys)
    assert [key(), *(key(**change) for change in changes)] == keys
    sha256 = Corpus.sha256
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "sha256", lambda c, s: "new" if s == "test" else sha256(c, s))
        assert key() not in keys
    model = made_run(run.directory, "layernorm")
    assert evaluate(ask(model, tmp_path / "out"))[0].key not in keys


def test_another_prefix_makes_another_record_where_pages_begin_with_it(run, tmp_path):
    """The tokenizer's hash knows nothing of it."""
    card, found = run["tokenizer"] / "tokenizer_card.json", []
    for prefix in (5, 7):
        card.write_text(json.dumps(json.loads(card.read_text()) | {"prefix": prefix}))
        for protocol in ("lm-eval", "window"):
            found += evaluate(ask(run, tmp_path / "out", protocol=protocol))
    paged, plain, again, same = found
    assert paged.text.tokenizer_hash == again.text.tokenizer_hash
    assert (again.key != paged.key, same.key) == (True, plain.key)


def test_the_text_to_calibrate_on_is_the_validation_splits_and_cut_once(run, tmp_path, monkeypatch):
    given, sha256, said = [], Corpus.sha256, {}
    monkeypatch.setattr(Corpus, "sha256", lambda self, s: said.get(s) or sha256(self, s))
    monkeypatch.setattr(
        "normlab.evaluation.evaluator.scales",
        lambda *_, pow2, calibration: given.append(calibration) or {},
    )
    rules = ("fp16+calibrated", "fp16+calibrated_max.pow2", "fp16+slanc")
    first = evaluate(ask(run, tmp_path / "out", *rules, calibration_windows=3))
    assert first[0].provenance.calibration == first[1].provenance.calibration
    kept = {"split": "valid", "windows": 3, "length": 31, "text_sha256": CORPUS.sha256("valid")}
    assert (first[0].provenance.calibration, first[2].provenance.calibration) == (kept, None)
    cut = protocols["window"].windows(TEXTS["valid"], untrained(run.directory).tokenizer, 32, 3)
    np.testing.assert_array_equal(given[0], cut.inputs)
    assert given[1] is given[0]
    said["valid"] = "another"
    second = evaluate(ask(run, tmp_path / "out", *rules, calibration_windows=3))
    assert [a.key == b.key for a, b in zip(first, second, strict=True)] == [False, False, True]


def test_what_an_earlier_call_kept_stays(run, made_up, tmp_path):
    asked = partial(ask, run, precision=("fp32", "fp16"))
    plain = evaluate(asked(tmp_path / "a"))[1]
    assert (plain.comparison.kl_mean, plain.result.token_nll_file) == (None, None)
    rate = plain.text.tokens_scored / plain.result.seconds
    assert plain.result.tokens_per_second == pytest.approx(rate)
    wide, compared = evaluate(asked(tmp_path / "a", compare=True))
    assert made_up.calls == [["fp32"], ["fp16"], ["fp32", "fp16"]]
    assert (wide.comparison.kl_mean, compared.key) == (None, plain.key)
    assert compared.result.seconds == plain.result.seconds
    both = evaluate(asked(tmp_path / "a", per_token=True))[1]
    for name in ("token_delta_mean", "token_delta_max_at", "top1_agreement", "kl_mean", "kl_max"):
        assert getattr(both.comparison, name) == getattr(compared.comparison, name) is not None
    calls = len(made_up.calls)
    again = evaluate(asked(tmp_path / "a", compare=True, per_token=True))[1]
    assert (again, len(made_up.calls)) == (both, calls)
    evaluate(asked(tmp_path / "b", per_token=True))
    other = evaluate(asked(tmp_path / "b", compare=True))[1]
    assert other.result.token_nll_file == both.result.token_nll_file
    assert other.comparison.kl_mean == both.comparison.kl_mean
    file = tmp_path / "b" / str(other.result.token_nll_file)
    file.unlink()  # what is gone is made again
    evaluate(asked(tmp_path / "b", per_token=True))
    assert file.exists()


def test_the_batch_is_the_one_that_is_run(run, tmp_path, monkeypatch):
    """On two devices of a mesh a batch of 3 is one of 4."""
    monkeypatch.setattr("normlab.evaluation.metadata.padded_rows", lambda size: size + size % 2)
    (record,) = evaluate(ask(run, tmp_path / "out", batch=3))
    assert record.provenance.batch == 4


def test_other_columns_do_not_go_on(run, tmp_path, monkeypatch):
    """What was cut off is one set of columns at one batch size."""
    made = []
    monkeypatch.setattr(
        "normlab.evaluation.evaluator.PartialResults", lambda path: made.append(path) or None
    )
    for columns, batch in [(("fp16",), 1), (("fp16", "bf16"), 1), (("fp16",), 2), (("fp16",), 1)]:
        (tmp_path / "records.jsonl").unlink(missing_ok=True)
        evaluate(ask(run, tmp_path, *columns, batch=batch, compare=True))
    assert made[0] == made[3]
    assert len(set(made)) == 3


@pytest.mark.parametrize("protocol", [p for p in protocols if p != "word"])
def test_each_protocol_reads_its_own_windows(run, tmp_path, protocol):
    (record,) = evaluate(ask(run, tmp_path / "out", protocol=protocol, window=20))
    tokenizer = untrained(run.directory).tokenizer
    windows = protocols[protocol].windows(TEXTS["test"], tokenizer, 20, 6)
    assert (record.text.protocol, record.text.reported) == (protocol, protocols[protocol].reported)
    assert record.text.windows == len(windows)
    assert record.result.window_tokens == windows.counts.tolist()
    assert record.text.words == windows.words.sum()
    assert record.result.word_perplexity > record.result.perplexity > 1


def test_a_directory_of_runs_is_a_table_whatever_became_of_them(run, tmp_path):
    runs = run.directory.parent
    made_run(runs / "b", "dyt")
    made_run(runs / "c", state="diverged")
    made_run(runs / "d", state="running")
    made_run(runs / "e", state="failed", reason="refused")
    asked, out = ("fp32", "fp16:sequential"), tmp_path / "out"
    perplexities(EvaluateConfig(runs=str(runs), precision=asked, max_windows=6, out=str(out)))
    found = {(r.model.name, r.precision): r for r in RecordFile(out / "records.jsonl").read()}
    statuses = ["ok", "n/a", "diverged", "unfinished", "failed: refused"]
    assert [found[m, asked[1]].status for m in "abcde"] == statuses
    assert [found[m, "fp32"].status for m in "ab"] == ["ok", "ok"]
    texts = {r.model.facts["training_provenance"]["corpus"]["name"] for r in found.values()}
    assert (len(found), texts) == (10, {"embedded"})  # seeds stay together
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [r["model"] for r in rows] == list("abcde")
    assert [r["fp16:sequential status"] for r in rows] == statuses
    for name in ("table.md", "table.tex"):
        assert "diverged" in (out / name).read_text()


@pytest.mark.system
def test_a_datapath_that_a_norm_cannot_have_is_na(run, tmp_path, capsys):
    """And the rows of other norms are computed. ScaleNorm has ε outside its root."""
    made_run(run.directory.parent / "b", "scalenorm")
    asked = {"runs": str(run.directory.parent), "max_windows": 2, "out": str(tmp_path / "out")}
    records = evaluate(EvaluateConfig(precision=("simd16-table64",), **asked))
    assert [r.status for r in records] == ["ok", "n/a"]
    told = " ".join(capsys.readouterr().out.split())
    assert "b: simd16-table64: root.kind = 'table': makes 1/√(m + ε)" in told


def test_what_must_be_said_beside_a_models_name(run, tmp_path):
    run.write("record.json", {"state": "running"})
    said = "step 2 of 12, unfinished"
    perplexities(ask(run, tmp_path / "out"))
    (record,) = RecordFile(tmp_path / "out" / "records.jsonl").read()
    assert (record.status, record.model.note) == ("ok", said)
    assert f"a: {said}." in (tmp_path / "out" / "table.md").read_text()
    training = {"step": 2, "config": {"steps": 12}, "training": {"state": "diverged"}}
    assert facts.note(training) == "step 2 of 12, diverged"
    assert facts.note(training | {"training": {"state": "stopped early"}}) is None
    note = facts.note({"source": "cache/SmolLM2-135M-Instruct.Q4_1.gguf", "family": "llama"})
    assert note == "SmolLM2-135M-Instruct, quantized Q4_1"
    own = {"source": "models/own", "family": "llama"}
    assert facts.note(own) is None
    assert facts.note(own | {"tokenizer": "BPE dropout = 0.1, switched off"}) == (
        "BPE dropout = 0.1, switched off"
    )
