"""An export: whole or not at all, read again, and measured."""

import json

import pytest

from normlab import pretrained
from normlab.commands.launch import told
from normlab.evaluation import export
from normlab.evaluation.config import TextConfig
from normlab.evaluation.export import ExportConfig, write
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder


def ask(spec, out, **fields):
    given = {"window": 32, "max_windows": 2, "data": TextConfig("embedded")}
    return ExportConfig(pretrained=spec, out=str(out), **given | fields)


@pytest.fixture
def spec(tmp_path):
    """A tiny Llama."""
    return write_folder(tmp_path / "m", CONFIGS["llama"], tensors("llama"))


def test_a_directory_is_written_whole_or_not_at_all(spec, tmp_path, monkeypatch):
    """And never over another, which is seen before anything is read."""
    monkeypatch.setattr(export, "write_hf", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(ask(spec, tmp_path / "out"), "")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(export, "targets", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=r"out is there already: expected a directory that is not"):
        write(ask(spec, tmp_path / "out"), "")
    with pytest.raises(ValueError, match="out: expected a directory for the model"):
        write(ExportConfig(pretrained=spec), "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dtype=fp16"], "unknown dtype 'fp16'. Did you mean 'float16'?"),
        (["shard_gb=0"], "shard_gb = 0.0: expected a number > 0"),
        (["transform=rescale:atuo"], "transform 'rescale:atuo': expected numbers, rescale:c"),
        (["transform=folt"], "unknown transform 'folt'. Did you mean 'fold'?"),
        (["max_windows=0"], "max_windows = 0: expected a whole number"),
        (["trasform=fold"], "unknown key of the config 'trasform'. Did you mean 'transform'?"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(arguments, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        told(ExportConfig, arguments)


@pytest.mark.system
def test_it_is_measured_and_the_card_says_all_of_it(spec, tmp_path):
    """A rescaled stream: bit for bit where only powers of two moved."""
    config = ask(spec, tmp_path / "a" / "out", transform="rescale:0.125", shard_gb=1e-5)
    out, card = write(config, "python -m evaluate export …")
    loaded, rewritten, exported = card.measured
    assert (loaded.name, rewritten.name) == ("as loaded", "after rescale:0.125")
    assert loaded.perplexity == rewritten.perplexity == exported.perplexity
    assert exported.moved == (0.0, 0.0)
    readme = (out / "README.md").read_text()
    for said in (
        "`rescale:0.125`",
        "the factor 0.125",
        "SHA-256",
        "2 windows of 32 tokens",
        "export …",
    ):
        assert said in readme
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert len(list(out.glob("*.safetensors"))) > 2
    ours, theirs = (pretrained.describe(s).source for s in (spec, f"hf:{out}"))
    for name in ours.shapes:
        a, b = ours.read(name), theirs.read(name)
        moved = name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight"))
        assert ((a / 8 if moved else a) == b).all(), name


@pytest.mark.system
def test_the_eps_of_all_norms_is_the_one_that_costs_least(tmp_path):
    """Of a Gemma, whose norms want two; and its Δ is beside it."""
    spec = write_folder(tmp_path / "m", CONFIGS["gemma2"], tensors("gemma2"))
    out, card = write(ask(spec, tmp_path / "out", transform="rescale:0.25+fold"), "")
    assert any("ε" in note for note in card.notes)
    assert 0 < card.measured[-1].moved[1] < 1e-2
    read = pretrained.load(f"hf:{out}").model
    assert read.head is not None


@pytest.mark.system
def test_a_run_is_one_of_llamas(tmp_path, alone):
    """And its words are those of its tokenizer."""
    out, card = write(
        ExportConfig(run=str(alone.directory), out=str(tmp_path / "out"), max_windows=2), ""
    )
    assert card.family == "llama"
    assert [m.name for m in card.measured] == ["as loaded", "as exported"]
    assert card.measured[-1].moved[0] < 1e-5
    assert "a run of normlab, step" in (out / "README.md").read_text()
