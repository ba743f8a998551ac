"""An export: whole or not at all, read again, and measured."""

import json

import pytest

from normlab import pretrained
from normlab.commands.launch import told
from normlab.data import DataConfig, load_corpus
from normlab.evaluation import export
from normlab.evaluation.config import TextConfig
from normlab.evaluation.export import ExportConfig, write
from normlab.evaluation.texts import calibration_tokens
from normlab.pretrained.export.scales_file import ScalesFile, weights_hash
from normlab.pretrained.export.tensors import tensors as tensors_of
from normlab.pretrained.families import families
from normlab.pretrained.load import Checkpoint
from normlab.scaling import scales
from tests.support.byte_level import bpe
from tests.support.small_checkpoints import CONFIGS, EPS, tensors, write_folder


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
        (["format=ggml"], "unknown format 'ggml'. Did you mean 'gguf'?"),
        (["format=gguf", "dtype=bfloat16"], "unknown dtype 'bfloat16'. Did you mean 'float16'?"),
        (["rule=random_token"], "unknown scale rule 'random_token'. Did you mean 'random_tokens'?"),
        (["rule=slanc", "datapath=ane-fp16"], "ane-fp16: its mirrored is not computed by apply_sc"),
        (["keep_fp32=[norm_final]"], r"keep_fp32 = \('norm_final',\): expected rule= beside it"),
        (["datapath=fp16"], "datapath = fp16: expected rule= beside it"),
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


def test_a_tokenizer_that_no_file_can_hold_is_refused_before_the_model_is_read(
    spec, tmp_path, monkeypatch
):
    path = tmp_path / "m" / "tokenizer.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"normalizer": {"type": "Lowercase"}}))
    monkeypatch.setattr(Checkpoint, "load", lambda _: 1 / 0)
    with pytest.raises(ValueError, match="BPE behind ByteLevel: expected byte-level BPE that cuts"):
        write(ask(spec, tmp_path / "out", format="gguf"), "")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.system
@pytest.mark.parametrize(("format", "dtype"), [("gguf", "float16"), ("hf", "bfloat16")])
def test_scales_are_of_the_weights_that_are_written(spec, tmp_path, format, dtype):
    """Each norm's, in either format; of a rewritten model, with the ε that it wants."""
    bpe("smollm", 2).save(str(tmp_path / "m" / "tokenizer.json"))
    fields = {
        "transform": "rescale:0.5",
        "rule": "random_tokens.pow2",
        "keep_fp32": ("norm_final",),
    }
    config = ask(spec, tmp_path / "out", format=format, dtype=dtype, **fields)
    out, card = write(config, "")
    file = out / "m-float16.gguf"
    read = pretrained.load(f"gguf:{file}" if format == "gguf" else f"hf:{out}")
    assert len(card.files) == 1
    assert 0 < card.measured[-1].moved[1] < 0.1
    said = ScalesFile.read(out / "scales.json")
    names = families["llama"].folder
    assert said.weights == weights_hash(t.values() for t in tensors_of(read.model, names))
    stored = {t.name.removesuffix(".weight") for t in tensors_of(read.model, names)}
    assert said.modules.keys() <= stored
    assert [name for name, m in said.modules.items() if m.keep_fp32] == ["model.norm"]
    assert {m.eps for m in said.modules.values()} == {EPS / 4}
    assert said.datapath == "fp16:pairwise.input"
    readme = (out / "README.md").read_text()
    assert "each of 5 norms by the rule `random_tokens.pow2`" in readme
    assert f"library_name: {'gguf' if format == 'gguf' else 'transformers'}" in readme


@pytest.mark.system
def test_a_scale_for_each_row_is_refused_and_nothing_is_left(spec, tmp_path):
    with pytest.raises(ValueError, match="'row_max' gives each row a scale of its own, which no"):
        write(ask(spec, tmp_path / "out", rule="row_max"), "")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.system
def test_a_rule_that_looks_at_text_looks_at_the_validation_split(spec, tmp_path):
    out, _ = write(ask(spec, tmp_path / "out", rule="calibrated"), "")
    found = ScalesFile.read(out / "scales.json").modules["model.norm"].scale
    lm, corpus = pretrained.load(spec), load_corpus(DataConfig("embedded"))
    tokens, _ = calibration_tokens(corpus, lm.tokenizer, 32, 8)
    assert found == (float(scales(lm.model, "calibrated", calibration=tokens)["norm_final"]),)
