"""Bits per byte, where models read a text with several tokenizers."""

import math

import numpy as np
import pytest

from normlab.results import tables
from normlab.results.bits import bit_difference, bit_tables
from normlab.results.formats import as_csv, markdown
from normlab.results.summary import summary
from tests.support.records import record

BYTES = 600


def read(model, nll, tokenizer="bpe-300", precision="fp32", counts=(10, 30, 20), **fields):
    """A record of windows with these sums of NLL."""
    bits = sum(nll) / BYTES / math.log(2)
    return record(
        model, precision, tokenizer=tokenizer, tokenizer_hash=tokenizer, bytes=BYTES,
        tokens_scored=sum(counts), window_nll=list(nll), window_tokens=list(counts),
        bits_per_byte=bits, perplexity=math.exp(sum(nll) / sum(counts)), delta=0.5,
        delta_stderr=0.1, **fields,
    )  # fmt: skip


A = read("a", [20.0, 70.0, 40.0])
B = read("b", [90.0, 300.0, 210.0], "bytes", counts=(100, 300, 200))
NARROW = read("a", [21.0, 72.0, 41.5], precision="fp16")


def test_several_tokenizers_of_one_text_share_a_table_of_bits_and_no_table_of_perplexities():
    (table,) = bit_tables([A, B, NARROW])
    assert table.columns == ["model", "norm", "placement", "tokens", "fp32", "fp16 (Δ)"]
    assert [line[:4] for line in table.lines()] == [
        ["a", "rmsnorm", "pre", "bpe-300"], ["b", "rmsnorm", "pre", "bytes"],
    ]  # fmt: skip
    assert [row["fp32"].value for row in table.rows.values()] == [
        pytest.approx(130 / 600 / math.log(2)), pytest.approx(1 / math.log(2)),
    ]  # fmt: skip
    assert table.title.startswith("Bits per byte on WikiText-2 (raw)")
    assert "tokenizers bpe-300, bytes, whose perplexities don't compare" in table.title
    for one in tables([A, B, NARROW]):
        assert one.title.startswith("Token perplexity")
        assert len(one.rows) == 1
    assert "0.313" in summary(table)
    assert "1.443" in summary(table)
    assert "| a | rmsnorm | pre | bpe-300 | 0.313 | 0.323 (+0.0108 ± " in markdown([table])
    header, line, _ = as_csv([table, *tables([A])]).splitlines()[:3]
    assert len(set(header.split(","))) == header.count(",") + 1
    assert "bits_per_byte" in line


def test_one_tokenizer_or_a_part_of_the_text_has_none():
    assert bit_tables([A, NARROW]) == []
    few = [read(m, [1.0, 1.0, 1.0], t, max_windows=3) for m, t in (("a", "x"), ("b", "y"))]
    assert bit_tables(few) == []
    assert bit_tables([A, read("b", [1.0], "bytes", dataset_title="another")]) == []


def test_what_did_not_work_is_a_cell_that_says_so():
    lost = read("a", [math.nan] * 3, precision="fp16")
    (table,) = bit_tables([A, B, lost])
    assert [str(row.get("fp16")) for row in table.rows.values()] == ["nan", "None"]


def test_a_transform_is_measured_against_the_model_before_it():
    folded = read("a (fold)", [20.5, 70.5, 40.5], transform="fold")
    (table,) = bit_tables([A, B, folded])
    cell = table.rows[("a (fold)", "rmsnorm", "pre", "bpe-300")]["fp32"]
    assert cell.delta == pytest.approx(1.5 / BYTES / math.log(2))


def test_the_error_is_that_of_windows_drawn_again():
    """The delta method against a bootstrap of the ratio, times bytes per token."""
    rng = np.random.default_rng(0)
    counts = rng.integers(20, 60, 400)
    exact = counts * rng.normal(3, 0.2, 400)
    moved = exact + counts * rng.normal(0.01, 0.05, 400)
    one, other = (read("a", list(nll), counts=counts.tolist()) for nll in (moved, exact))
    delta, stderr = bit_difference(one, other)
    assert delta == pytest.approx((moved - exact).sum() / BYTES / math.log(2))
    drawn = rng.integers(0, 400, (4000, 400))
    ratios = (moved - exact)[drawn].sum(1) / counts[drawn].sum(1)
    per_token = BYTES / counts.sum() * math.log(2)
    assert stderr == pytest.approx(ratios.std() / per_token, rel=0.05)
    alone = read("a", [1.0], counts=[2]), read("a", [2.0], counts=[2])
    assert math.isnan(bit_difference(*alone)[1])
