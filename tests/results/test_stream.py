"""The line under a table on streams that a column's format can't hold."""

import math

import pytest

from normlab.results import tables
from normlab.results.formats import markdown
from tests.support.records import record


def sites(outside=0, kind="norm_in", at=3, largest=150_000.0):
    """Of four blocks; from one on so many elements are outside."""
    names = [f"blocks.{i}.mlp.{kind}" for i in (2, 10, 3)]
    found = {name: {"outside": 0, "max_abs": 10.0} for name in names}
    lost = {"outside": outside, "max_abs": largest}
    found |= {name: lost for name in names if outside and int(name.split(".")[1]) >= at}
    return found


def note(*given, **more):
    """Of a model's fp32 and of columns, each its name and its sites."""
    exact = record("m", "fp32", sites=sites(1, **more))
    others = [record("m", name, sites=seen, **of) for name, seen, of in given]
    (table,) = tables([exact, *others])
    assert table.stream in markdown([table])
    return table.stream


def test_where_it_leaves_the_format_and_the_factor_that_fits():
    said = note(("fp16+random_tokens", sites(7), {}))
    assert said == (
        "The stream of m leaves fp16 at blocks.3.mlp.norm_in (up to 150,000): "
        "transform=rescale:0.25."
    )
    assert 150_000 * 0.25 < 65504 < 150_000 * 0.5
    assert note(("fp16", sites(0), {}), ("bf16", sites(0), {})) == ""


def test_activations_that_overflowed_are_told_by_the_size_in_fp32():
    lost = sites(7, largest=math.inf)
    held = {"activations": "fp16", "transform": "fold"}
    said = note(("fp32:pairwise@fp16", lost, held), ("fp16@fp16", lost, held))
    assert said.startswith("The stream of m leaves fp16 at blocks.3.mlp.norm_in (up to 150,000)")
    assert said.endswith("transform=rescale:0.25+fold.")


@pytest.mark.parametrize("kind", ["norm_out", "post_norm"])
def test_what_a_rescaled_stream_does_not_cure_gets_no_factor(kind):
    said = note(("fp16+slanc", sites(7, kind), {}), kind=kind)
    assert said.startswith(f"A norm's input of m leaves fp16 at blocks.3.mlp.{kind} (up to 150")
    assert "rescale" not in said
    assert "evaluate ranges" in said


def test_of_many_rows_the_worst_is_named():
    many = [record(name, "fp16", sites=sites(7, largest=size)) for name, size in
            (("a", 7e4), ("b", 9e5), ("c", 8e4))]  # fmt: skip
    (table,) = tables(many)
    assert table.stream == (
        "The stream of b leaves fp16 at blocks.3.mlp.norm_in (up to 900,000): "
        "transform=rescale:0.0625 (one of 3 rows)."
    )
