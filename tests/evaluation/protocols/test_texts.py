"""Texts of protocols: rows, pages, detokenization, and what is counted in them."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.data.tokenizer import BPETokenizer, Encoding, WordTokenizer
from normlab.evaluation.protocols.texts import (
    bytes_by_token,
    detokenized,
    joined_rows,
    pages,
    spread,
    words_by_token,
)

WIKI = " \n = First = \n \n Some words , here . \n = = Part = = \n More . \n = Second = \n End \n"
BPE = BPETokenizer.train(WIKI * 3 + "größer als 3 µm — naïve 日本 ", 300)
TEXT = st.text(st.sampled_from("ab \n=é日𝄞\t\u2028."), max_size=60)


def test_rows_are_joined_as_the_hub_has_them():
    rows = ["", " = First = \n", "", " Some words , here . \n", " = = Part = = \n", " More . \n"]
    rows += [" = Second = \n", " End \n"]
    assert joined_rows(WIKI) == "\n\n".join(rows)
    assert joined_rows("a\nb") == "a\n\n\nb"
    assert joined_rows("") == ""


def test_pages_begin_at_headings_of_the_first_level():
    first, second = pages(WIKI)
    assert first == " = First = \n \n Some words , here . \n = = Part = = \n More . "
    assert second == " = Second = \n End \n"
    assert pages("no heading\nat all") == ["no heading\nat all"]
    assert pages("") == []


@given(TEXT)
def test_pages_lose_nothing_but_newlines_between_them_and_blank_beginnings(text):
    assert "".join("".join(pages(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("raw", "natural"),
    [
        ("the dogs ' bones", "the dogs' bones"),
        ("1 @,@ 000 @.@ 5 well @-@ known", "1,000.5 well-known"),
        (
            "one , two ; three : four . five ! six ? seven",
            "one, two; three: four. five! six? seven",
        ),
        ("( a b ) [ c ] { d }", "(a b) [c] {d}"),
        ('" quoted "', '"quoted"'),
        ("= = = x = = =", "=== x ==="),
        ("20 ° C", "20°C"),
        ("a \n b", "a\nb"),
        ("it 's N times", "it's 1 times"),
    ],
)
def test_detokenization(raw, natural):
    assert detokenized(raw) == natural


@given(TEXT)
def test_words_and_bytes_of_all_tokens_are_those_of_the_text(text):
    encoding = BPE.encode(text) if text else Encoding(np.zeros(0, np.int32), np.zeros(0, np.int64))
    assert words_by_token(text, encoding).sum() == len(text.split())
    assert bytes_by_token(text, encoding).sum() == len(text.encode())


@given(TEXT, st.integers(0, 30), st.integers(0, 30))
def test_words_and_bytes_of_a_span(text, i, j):
    tokenizer = WordTokenizer(["<unk>", "<eos>"])
    encoding = tokenizer.encode(text)
    i, j = sorted((min(i, len(encoding.ids)), min(j, len(encoding.ids))))
    ends = [0, *encoding.ends.tolist()]
    span = text[ends[i] : ends[j]]
    assert words_by_token(text, encoding)[i:j].sum() == len(re.findall(r"\S+", span))
    assert bytes_by_token(text, encoding)[i:j].sum() == len(span.encode())


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_spread_is_even_and_whole(total, tokens):
    dealt = spread(total, tokens)
    assert dealt.sum() == total
    assert len(dealt) == tokens
    assert dealt.max() - dealt.min() <= 1


@pytest.mark.skipif("NORMLAB_DATA" not in os.environ, reason="needs WikiText-2 (NORMLAB_DATA)")
def test_wikitext_has_62_articles_in_its_test_split():
    """The number of documents that lm-evaluation-harness reports for wikitext."""
    file = Path(os.environ["NORMLAB_DATA"]) / "wikitext-2-raw-v1" / "wiki.test.raw"
    assert len(pages(file.read_text(encoding="utf-8"))) == 62
