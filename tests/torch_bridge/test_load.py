"""`pretrained=torch:DIR`: the table of a saved checkpoint, and what is refused."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.command_line import ROOT
from tests.support.family_golden import golden, write

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from normlab.torch_bridge import describe  # noqa: E402
from tests.support.torch_models import MAMBA, other  # noqa: E402

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("default"),  # other packages' warnings are theirs
]


def checkpoint(folder, case="llama", **changed):
    kept = golden()[case]
    return write(folder, kept["config"] | changed, kept["shapes"])


def saved(folder, kind):
    """A model of `transformers` with the families' tokenizer."""
    checkpoint(folder)
    (folder / "model.safetensors").unlink()
    config = transformers.MambaConfig(**MAMBA | {"vocab_size": 300})
    model = transformers.MambaForCausalLM(config) if kind == "mamba" else other(kind)[0]
    model.save_pretrained(folder)
    return folder


def evaluate(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "evaluate", *arguments, "data.corpus=embedded", "window=16"],
        cwd=ROOT, env=os.environ, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_table_of_a_model_that_has_no_family_here(tmp_path):
    """Mamba: perplexities in every column, a rule that reads weights n/a, the norms named."""
    folder, out = saved(tmp_path / "m", "mamba"), tmp_path / "out"
    said = evaluate(
        f"pretrained=torch:{folder}", f"out={out}", "max_windows=3", "compare=true",
        "precision=[fp32,fp16+slanc,fp16:sequential,fp16+random_tokens,bf16+row_max,hf-llama-fp16]",
    )  # fmt: skip
    assert "m (PyTorch): norms computed by normlab: 3 rmsnorm" in said
    assert "'slanc' reads weights" in said
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    by_column = {r["precision"]: r for r in records}
    exact = by_column["fp32"]
    assert exact["model"]["config"]["class"] == "MambaForCausalLM"
    assert exact["model"]["facts"]["norms"].keys() == exact["ranges"]["sites"].keys()
    assert by_column.pop("fp16+slanc")["status"] == "n/a"
    for column, r in by_column.items():
        assert r["ranges"]["rows"] == 3 * r["text"]["tokens_scored"]
        if column != "fp32":
            assert 0 < abs(r["comparison"]["delta"]) < 0.1 * exact["result"]["perplexity"]
    ranges = evaluate(
        "ranges", f"pretrained=torch:{folder}", f"out={out}", "max_windows=2", "precision=[fp16]"
    )
    assert "m (PyTorch): every tensor fits fp16." in ranges
    assert "the inputs of norms (….in)" in ranges


def test_what_can_not_be_scored_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: there is no such directory"):
        describe(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"model_type = 't5' has no causal language model"):
        describe(saved(tmp_path / "t5", "T5Model"))
    with pytest.raises(ValueError, match=r"model_type = 'own'.*code from a checkpoint is never"):
        describe(checkpoint(tmp_path / "own", model_type="own", auto_map={"AutoModel": "x.Y"}))
    with pytest.raises(ValueError, match=r"quantization_config: expected plain floats"):
        describe(checkpoint(tmp_path / "q", quantization_config={"quant_method": "awq"}))
    short = describe(checkpoint(tmp_path / "short", num_hidden_layers=4))
    with pytest.raises(ValueError, match=r"lacks the tensor model\.layers\.3\."):
        short.load()
    pickled = checkpoint(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"as a pickle only"):
        describe(pickled)


def test_an_encoder_is_refused_by_what_it_computes(tmp_path):
    """A causal class may be built on it: a later token changes its logits."""
    folder = checkpoint(tmp_path / "bert")
    (folder / "model.safetensors").unlink()
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**settings, intermediate_size=48, vocab_size=300)
    transformers.BertLMHeadModel(config).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"changes the logits before it.*expected a causal model"):
        describe(folder).load()
