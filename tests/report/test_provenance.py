"""Commands of the page: what is typed reads what was evaluated."""

import json
import shlex
from pathlib import Path

import pytest

from normlab.commands.launch import refuse_strange
from normlab.evaluation.config import EvaluateConfig
from normlab.norms import norms
from normlab.pretrained import PACKAGES, describe
from normlab.report.provenance import command, hydra_text
from normlab.scaling import scale_rules
from normlab.transforms import transforms
from tests.support.command_line import evaluation
from tests.support.report_sources import record
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder, write_gguf


def typed(text):
    """What our own command is told by a printed one, after a shell has read it."""
    python, dash_m, app, *words = shlex.split(text)
    assert (python, dash_m, app) == ("python", "-m", "evaluate")
    refuse_strange(app, EvaluateConfig, words)
    return evaluation(*words)


@pytest.mark.parametrize(
    "path",
    ["runs/a", "/a/Llama-3.2-1B", "with space/x", "a=b", "a,b", "(1)", "~/é", "null", "123", "1e3",
     "3.2", "-1", 'a"b', "it's", "[x]", "a#b", ".", "a:b", "a\\", 'a\\"b', " a", "{x}", "0x1"],
)  # fmt: skip
def test_paths_come_through_shell_and_hydra_as_they_are(path):
    assert typed(command(record("m", facts={"source": path}))).run == path
    facts = {"family": "llama", "source": path, "sha256": {path: "0"}}
    assert typed(command(record("m", facts=facts))).pretrained == f"gguf:{path}"


def test_simple_paths_have_no_quotes():
    assert hydra_text("hf:/models/Llama-3.2-1B") == "hf:/models/Llama-3.2-1B"


@pytest.mark.parametrize(
    ("source", "files", "spec"),
    [
        ("/m/Llama-3.2-1B/model.safetensors", {"model.safetensors": "0"}, "hf:/m/Llama-3.2-1B"),
        ("/m/two", {f"model-0000{i}-of-00002.safetensors": "0" for i in (1, 2)}, "hf:/m/two"),
        ("/m/Llama-3.2-1B", {"Llama-3.2-1B": "0"}, "gguf:/m/Llama-3.2-1B"),
        ("/m/my model.gguf", {"my model.gguf": "0"}, "gguf:/m/my model.gguf"),
        ("/c/x.gguf", {"x.gguf": PACKAGES["smollm2-135m"].sha256}, "smollm2-135m"),
    ],
)
def test_pretrained_models_are_named_as_they_are_loaded(source, files, spec):
    facts = {"family": "llama", "source": source, "sha256": files}
    assert typed(command(record("m", facts=facts))).pretrained == spec


@pytest.mark.parametrize("form", ["one file", "an index of one", "a GGUF file without suffix"])
@pytest.mark.parametrize("name", ["Llama-3.2-1B", "1e3", "a b"])
def test_what_is_typed_finds_the_checkpoint_that_was_evaluated(form, name, tmp_path, monkeypatch):
    """By the path that was given, relative ones included."""
    monkeypatch.chdir(tmp_path)
    if form == "a GGUF file without suffix":
        spec = write_gguf(Path(name), "llama", CONFIGS["llama"], tensors("llama"))
    else:
        spec = write_folder(Path(name), CONFIGS["llama"], tensors("llama"))
    if form == "an index of one":
        shard = Path(name, "model-00001-of-00001.safetensors")
        Path(name, "model.safetensors").rename(shard)
        told = {"weight_map": dict.fromkeys(tensors("llama"), shard.name)}
        Path(name, "model.safetensors.index.json").write_text(json.dumps(told))
    checkpoint = describe(spec)
    found = describe(typed(command(record("m", facts=checkpoint.facts()))).pretrained)
    assert found.facts() == checkpoint.facts()
    assert found.name == checkpoint.name


def test_a_command_names_text_protocol_calibration_and_mesh():
    mesh = {"data": 2, "model": 1, "shard_parameters": True, "processes": 1}
    asked = typed(command(record(
        "a", "fp16:lanes8+calibrated", calibration={"split": "valid", "windows": 32},
        environment={"mesh": mesh}, transform="fold",
    )))  # fmt: skip
    assert (asked.run, asked.protocol, asked.window, asked.split) == (
        "runs/a",
        "window",
        32,
        "test",
    )
    assert (asked.precision, asked.transform) == (("fp16:lanes8+calibrated",), ("fold",))
    assert (asked.data.corpus, asked.calibration_windows) == ("embedded", 32)
    assert (asked.mesh.data, asked.mesh.model, asked.mesh.shard_parameters) == (2, 1, True)


def test_every_rewrite_rule_and_order_that_can_be_recorded_is_typed_as_it_was():
    columns = ["fp16.stochastic7:lanes8", "e8m12:blocks16", "bf16.mean:exact_then_round"]
    for text in (*columns, *(f"fp8_e5m2+{rule}.pow2" for rule in scale_rules)):
        assert typed(command(record("a", text))).precision == (text,)
    for chain in ("recentre+rescale:0.25", *(set(transforms) - {"rescale"}), *norms):
        assert typed(command(record("a", transform=chain))).transform == (chain,)


def test_what_was_not_evaluated_has_no_command():
    assert command(record("a", status="diverged", facts={})) == ""
    assert command(record("a", protocol=None)) == ""
