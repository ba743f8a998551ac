"""`python -m evaluate transform=[…]`: rows of their own, and what can't be done says n/a."""

import csv
from pathlib import Path

import pytest

from normlab.commands.evaluate import perplexities
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig, TextConfig
from normlab.results import RecordFile, tables
from normlab.results.record import NOT_APPLICABLE, Record
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder

ASKED = ("none", "rescale:0.25", "recentre", "doubled")


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A tiny Llama: RMSNorm, pre-norm."""
    return write_folder(tmp_path_factory.mktemp("m"), CONFIGS["llama"], tensors("llama"))


def ask(spec, out, **fields):
    given = {"precision": ("fp32",), "transform": ASKED, "out": str(out)}
    return EvaluateConfig(
        pretrained=spec,
        window=32,
        max_windows=2,
        data=TextConfig(corpus="embedded"),
        **given | fields,
    )


@pytest.mark.system
def test_each_transform_is_a_row_that_says_so(spec, tmp_path):
    perplexities(ask(spec, tmp_path))
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    records = [Record.from_json(line) for line in lines]
    found = {(r.model.transform, r.precision): r for r in records}
    assert len(found) == len(records) == len(ASKED)
    plain = found["none", "fp32"]
    for text in ASKED[1:]:
        assert found[text, "fp32"].model.name == f"{plain.model.name} ({text})"
        assert found[text, "fp32"].key != plain.key
    small, swapped = found["rescale:0.25", "fp32"], found["doubled", "fp32"]
    assert small.result.perplexity == plain.result.perplexity
    assert small.model.weights_sha256 != plain.model.weights_sha256
    largest = [r.ranges.sites["norm_final"]["max_abs"] for r in (small, plain)]
    assert largest[0] == largest[1] / 4
    assert swapped.model.norm == "doubled"
    assert swapped.result.perplexity == pytest.approx(plain.result.perplexity, rel=1e-5)
    assert found["recentre", "fp32"].status == NOT_APPLICABLE
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    names = [plain.model.name, *(f"{plain.model.name} ({text})" for text in ASKED[1:])]
    assert [row["model"] for row in rows] == names
    for name in ("table.md", "table.tex"):
        assert "(rescale:0.25)" in (tmp_path / name).read_text()


@pytest.mark.system
def test_the_delta_of_a_transform_is_to_the_model_before_it(spec, tmp_path):
    """In every column, fp32 too, and token by token; that model is run though nobody asks."""
    columns = ("fp32", "fp16:sequential")
    config = ask(
        spec, tmp_path, transform=("prmsnorm", "rescale:0.25"), precision=columns, compare=True
    )
    found = {(r.model.transform, r.precision): r for r in evaluate(config)}
    assert len(found) == 4
    (plain,) = (
        r for r in RecordFile(tmp_path / "records.jsonl").read() if r.model.transform == "none"
    )
    assert plain.precision == "fp32"
    for record in found.values():
        moved = record.result.perplexity - plain.result.perplexity
        assert record.comparison.delta == moved
        assert record.comparison.token_delta_mean is not None
    other, same = found["prmsnorm", "fp32"].comparison, found["rescale:0.25", "fp32"].comparison
    assert other.kl_mean > 1
    assert other.delta_stderr > 0
    assert same.delta == same.kl_max == same.token_delta_max == 0
    shown, table = f"({other.delta:+.0f}"[:5], tables(found.values())[0]
    assert shown in table.lines()[0][3]


def test_a_second_call_reuses_every_row(spec, made_up, tmp_path, capsys):
    config = ask(spec, tmp_path, transform=("none", "rescale:.5", "rescale:0.5", "recentre"))
    first = [r.to_json() for r in evaluate(config)]
    assert len(first) == 3  # one of them was asked for twice
    written = (tmp_path / "records.jsonl").read_bytes()
    said = " ".join("".join(capsys.readouterr()).split())
    assert "recentre: expected a LayerNorm before every branch" in said
    assert made_up.calls == [["fp32"], ["fp32"]]  # a rewrite that doesn't apply reads nothing
    assert [r.to_json() for r in evaluate(config)] == first
    assert len(made_up.calls) == 2
    assert (tmp_path / "records.jsonl").read_bytes() == written
    assert len(RecordFile(Path(tmp_path) / "records.jsonl").read()) == len(first)


@pytest.mark.system
def test_a_rule_that_does_not_apply_is_no_end_of_the_table(spec, tmp_path, capsys):
    asked = {"transform": ("prmsnorm", "none"), "precision": ("fp32", "fp16+bound")}
    config = ask(spec, tmp_path, compare=True, **asked)
    records = evaluate(config)
    assert [r.status for r in records] == ["ok", NOT_APPLICABLE, "ok", "ok"]
    said = " ".join("".join(capsys.readouterr()).split())
    assert said.count("doesn't promise; take another") == 1
    assert [r.to_json() for r in evaluate(config)] == [r.to_json() for r in records]


@pytest.mark.system
def test_a_number_that_is_found_is_in_the_records(spec, tmp_path):
    config = ask(spec, tmp_path, transform=("rescale:1048576+rescale:auto", "rescale:auto"))
    far, near = (r.model.transform for r in evaluate(config))
    assert near == "none"
    assert float(far.removeprefix("rescale:1048576+rescale:")) < 2**-3
    with pytest.raises(ValueError, match="rescale:auto is found for one model"):
        evaluate(EvaluateConfig(runs=str(tmp_path), transform=("rescale:auto",)))
