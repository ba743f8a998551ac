"""Documents: what one is, and which split it goes to."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.data import documents as documents_file
from normlab.data.documents import Documents, Source, blocks, records, share
from normlab.data.wikitext import CorpusUnavailableError

SHARES = {"train": 0.5, "valid": 0.25, "test": 0.25}
LINES = st.lists(st.sampled_from(["a\n", "b c\n", "é\r\n", "\n", " \n"]), max_size=30)
TEXTS = st.lists(st.text(st.sampled_from("ab \né"), min_size=1, max_size=9), max_size=40)


def source(stamp=None, **own):
    def read(split):
        return iter(own[split])

    return Source("Toy", "toy", "toy", tuple(own), read, stamp)


def split(shares=SHARES, **own):
    parts = Documents.of(source(**own), shares, None)
    return {name: list(parts(name)) for name in SHARES if parts.facts[name]["documents"]}


@given(LINES)
def test_blocks_are_the_lines_again(lines):
    made = list(blocks(lines))
    assert "".join(made) == ("".join(lines) if any(line.strip() for line in lines) else "")
    assert all(block.strip() for block in made)


@given(LINES)
def test_a_block_ends_with_the_blank_lines_after_it_and_nowhere_else(lines):
    made = list(blocks(lines))
    for block in made[:-1]:
        assert block.endswith("\n\n") or block.endswith("\n \n")
    for block in made:
        assert len(Counter(bool(line.strip()) for line in block.strip().splitlines())) <= 1


def test_a_block_without_a_blank_line_ends_after_enough_characters(monkeypatch):
    monkeypatch.setattr(documents_file, "LONGEST", 10)
    assert list(blocks(["12345\n"] * 5)) == ["12345\n" * 2, "12345\n" * 2, "12345\n"]


def test_a_record_has_a_blank_line_after_it_and_is_text():
    assert list(records(["a", None, "", " \n", "b\n"], "x")) == ["a\n\n", "b\n\n\n"]
    with pytest.raises(ValueError, match=r"x holds int: expected text \(data.column=NAME\)"):
        list(records([1], "x"))


@given(TEXTS)
def test_the_splits_hold_every_document_once_in_order(texts):
    found = split(train=texts)
    assert Counter(d for part in found.values() for d in part) == Counter(texts)
    for part in found.values():
        rest = iter(texts)
        assert all(document in rest for document in part)  # in the order of the whole


@given(TEXTS, st.randoms())
def test_where_a_document_goes_depends_on_nothing_else(texts, random):
    """Not on the others, their order, or white space at its ends, such as a file's last newline."""
    others = random.sample(texts, len(texts) // 2)
    place = {d.strip(): name for name, part in split(train=texts).items() for d in part}
    for name, part in split(train=[f"\n{d}\n" for d in others]).items():
        assert {place[d.strip()] for d in part} <= {name}


def test_shares_are_kept_and_are_those_of_a_hash():
    found = split(train=[f"document {i}" for i in range(4000)])
    for name, part in found.items():
        assert len(part) / 4000 == pytest.approx(SHARES[name], abs=4 * (0.25 / 4000) ** 0.5)
    assert share("a") == share("\na ") == 0xCA978112CA1BBDCA / 2**64  # as SHA-256 of "a" begins


def test_splits_that_are_there_stay_and_only_the_others_are_cut():
    texts = [f"document {i}" for i in range(200)]
    both = split(train=texts)
    found = split(train=texts, valid=["v"])
    assert found["valid"] == ["v"]
    assert found["test"] == both["test"]
    assert sorted(found["train"]) == sorted(both["train"] + both["valid"])
    assert split(train=texts, valid=["v"], test=["t"])["train"] == texts
    assert split(test=["t"]) == {"test": ["t"]}
    everything = {"train": 0.0, "valid": 0.0, "test": 1.0}
    assert split(everything, train=texts) == {"test": texts}


def test_a_split_without_a_document_is_refused():
    parts = Documents.of(source(test=["t"]), SHARES, None)
    with pytest.raises(
        CorpusUnavailableError, match=r"toy has no document for the train split \(.*1 in test\)"
    ):
        parts("train")


def test_what_is_known_of_a_text_is_read_once_for_each_stamp(tmp_path):
    first = Documents.of(source(1, train=["a", "b"]), SHARES, tmp_path)
    again = Documents.of(source(1, train=None), SHARES, tmp_path)  # can't be read
    assert again.facts == first.facts
    assert Documents.of(source(2, train=["a", "c"]), SHARES, tmp_path).digest != first.digest
    assert sum(f["bytes"] for f in first.facts.values()) == 2
