"""Commands of the page: what is typed reads what was evaluated."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from normlab.pretrained import PACKAGES
from normlab.report.provenance import command, hydra_text
from tests.support.report_sources import record


def typed(text):
    """What Hydra makes of a command's fields after a shell has read it."""
    words = shlex.split(text)[3:]
    parsed = OverridesParser.create().parse_overrides(words)
    assert not any(override.is_sweep_override() for override in parsed)
    return {override.key_or_group: override.value() for override in parsed}


@pytest.mark.parametrize(
    "path",
    ["runs/a", "/a/Llama-3.2-1B", "with space/x", "a=b", "a,b", "(1)", "~/é", "null", "123", "1e3",
     'a"b', "it's", "[x]", "a#b", "."],
)  # fmt: skip
def test_paths_come_through_shell_and_hydra_as_they_are(path):
    assert typed(command(record("m", facts={"source": path})))["run"] == path


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
    assert typed(command(record("m", facts=facts)))["pretrained"] == spec


def test_a_command_names_text_protocol_calibration_and_mesh():
    mesh = {"data": 2, "model": 1, "shard_parameters": True, "processes": 1}
    asked = typed(command(record(
        "a", "fp16:lanes8+calibrated", calibration={"split": "valid", "windows": 32},
        environment={"mesh": mesh}, transform="fold",
    )))  # fmt: skip
    assert asked == {
        "run": "runs/a", "precision": ["fp16:lanes8+calibrated"], "transform": ["fold"],
        "data.corpus": "embedded", "split": "test", "protocol": "window", "window": 32,
        "calibration_windows": 32, "mesh.data": 2, "mesh.model": 1, "mesh.shard_parameters": True,
    }  # fmt: skip


def test_what_was_not_evaluated_has_no_command():
    assert command(record("a", status="diverged", facts={})) == ""
    assert command(record("a", protocol=None)) == ""
