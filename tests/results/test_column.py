"""A column's name: a precision and a scale rule."""

import pytest

from normlab.numerics import Precision
from normlab.results.column import Column


@pytest.mark.parametrize(
    ("text", "precision", "rule", "pow2"),
    [
        ("fp32", "fp32", None, False),
        ("fp16:lanes8+slanc", "fp16:lanes8", "slanc", False),
        ("fp16.flush.saturate:lanes8.onepass.input+slanc.pow2",
         "fp16.flush.saturate:lanes8.onepass.input", "slanc", True),
        ("fp8_e5m2+calibrated_max.pow2", "fp8_e5m2", "calibrated_max", True),
    ],
)  # fmt: skip
def test_it_is_a_precision_and_a_rule_and_prints_what_it_read(text, precision, rule, pow2):
    found = Column.parse(text)
    assert found == Column(Precision.parse(precision), rule, pow2)
    assert str(found) == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fp15+slanc", "unknown float format 'fp15'. Did you mean 'fp16'"),
        ("fp16+", "scale rule ''"),
        ("fp16+Slanc", "scale rule 'Slanc'"),
        ("fp16+slanc.pow3", "Did you mean 'pow2'"),
        ("fp16+a+b", r"scale rule 'a\+b'"),
    ],
)
def test_a_bad_name_is_refused_by_its_part_with_the_nearest(text, says):
    with pytest.raises(ValueError, match=says):
        Column.parse(text)


def test_pow2_needs_a_rule():
    with pytest.raises(ValueError, match="expected a scale rule before it"):
        Column(pow2=True)


def test_what_activations_are_held_in_stands_at_its_end():
    found = Column.parse("fp16:lanes8+slanc.pow2@bf16")
    assert found == Column(Precision.parse("fp16:lanes8"), "slanc", True, "bf16")
    assert str(found) == "fp16:lanes8+slanc.pow2@bf16"
    assert str(found.held) == "bf16"
    with pytest.raises(ValueError, match="format of activations 'fp15'. Did you mean 'fp16'"):
        Column.parse("fp16@fp15")


def test_sites_that_stay_in_fp32_stand_after_it():
    found = Column.parse("fp16+slanc@fp16/norm_final/blocks.2.*")
    assert found.keep_fp32 == ("norm_final", "blocks.2.*")
    assert str(found) == "fp16+slanc@fp16/norm_final/blocks.2.*"
    for text in ("fp16/", "fp16/Norm", "fp16/a b"):
        with pytest.raises(ValueError, match="expected a name or a pattern, such as norm_final"):
            Column.parse(text)
