"""What an evaluation refuses before it loads anything."""

import dataclasses

import pytest

from normlab.config import build, describe
from normlab.evaluation.config import EvaluateConfig, TextConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": ("fp32", "fp15")}, r"fp15.*Did you mean 'fp"),
        ({"precision": ("fp16:pairwse",)}, r"pairwse.*Did you mean 'pairwise'"),
        ({"precision": ("fp16+slank",)}, r"scale rule 'slank'.*Did you mean 'slanc'"),
        ({"activations": "fp15"}, r"activations 'fp15'.*Did you mean 'fp16'.*Known: bf16, fp16"),
        ({"precision": ("fp16@fp8",)}, r"format of activations 'fp8'"),
        ({"precision": ()}, r"at least one, such as \[fp32\]"),
        ({"transform": ("none", "folt")}, r"transform 'folt'.*Did you mean 'fold'"),
        ({"transform": ("recentre+rescale",)}, r"expected rescale:c"),
        ({"transform": ()}, r"transform = \[\]: expected at least one, such as \[none\]"),
        ({"split": "tset"}, r"split 'tset'.*Did you mean 'test'"),
        ({"protocol": "lmeval"}, r"protocol 'lmeval'.*Did you mean 'lm-eval'"),
        ({"data": {"corpus": "wikitxt2"}}, r"corpus 'wikitxt2'.*Did you mean 'wikitext2'"),
        ({"window": 1}, "window = 1: expected at least 2"),
        ({"max_windows": 0}, "max_windows = 0"),
        ({"batch": -1}, "batch = -1"),
        ({"run": "a", "runs": "b"}, "run=a and runs=b: expected exactly one"),
        ({"run": "a", "pretrained": "b"}, "run=a and pretrained=b: expected exactly one"),
    ],
)
def test_bad_values_name_what_was_given_and_what_is_near(fields, message):
    def make():
        data = TextConfig(**fields.pop("data", {}))
        return EvaluateConfig(data=data, **fields)

    with pytest.raises(ValueError, match=message):
        make()


def test_activations_and_sites_are_those_of_every_column_but_the_reference():
    asked = ("fp32", "fp32:pairwise", "fp16+slanc", "fp16@bf16", "fp16+slanc")
    config = EvaluateConfig(precision=asked, activations="fp16")
    held = ["fp32", "fp32:pairwise@fp16", "fp16+slanc@fp16", "fp16@bf16"]
    assert [str(column) for column in config.columns] == held
    config = EvaluateConfig(precision=("fp32", "fp16", "fp16/norm_qk"), keep_fp32=("norm_final",))
    assert [str(column) for column in config.columns] == ["fp32", "fp16/norm_final", "fp16/norm_qk"]


def test_something_must_be_evaluated():
    with pytest.raises(ValueError, match=r"run=DIR, runs=DIR, pretrained=NAME "):
        EvaluateConfig().source  # noqa: B018
    assert EvaluateConfig(pretrained="x").source == "pretrained"


def test_every_field_is_described():
    assert all(text for _, _, text in describe(EvaluateConfig()))
    assert len(list(describe(EvaluateConfig()))) >= len(dataclasses.fields(EvaluateConfig))


def test_the_config_is_what_yaml_builds():
    built = build(EvaluateConfig, {"runs": "r", "precision": ["fp32"], "data": {"root": "x"}})
    assert built == EvaluateConfig(runs="r", precision=("fp32",), data=TextConfig(root="x"))
    assert build(EvaluateConfig, {"precision": "fp32"}).precision == ("fp32",)
