import hashlib
import logging
import os
import platform

import pytest

from normlab.data import Corpus, CorpusUnavailableError, DataConfig, load_corpus, wikitext
from normlab.data import corpus as corpora
from normlab.registry import UnknownNameError

REAL = pytest.mark.skipif("NORMLAB_DATA" not in os.environ, reason="NORMLAB_DATA is not set")


@pytest.fixture
def nowhere(monkeypatch):
    """WikiText-2 can't be had, and nobody asks the network."""

    def find(name, root):
        raise CorpusUnavailableError("can't be had: NORMLAB_DATA, cache, hub")

    monkeypatch.setattr(wikitext, "find", find)


def test_embedded_says_what_it_is():
    corpus = load_corpus(DataConfig(corpus="embedded"))
    assert corpus.name == "embedded"
    assert corpus.revision == f"Python {platform.python_version()}"
    assert corpus.title.endswith("not WikiText-2")
    for split in ("train", "valid", "test"):
        assert corpus.sha256(split) == hashlib.sha256(corpus.text(split).encode()).hexdigest()


def test_auto_falls_back_with_a_notice_of_two_lines_once_a_process(nowhere, caplog, monkeypatch):
    monkeypatch.setattr(corpora, "_told", set())
    monkeypatch.setenv("NORMLAB_DATA", "elsewhere")
    names = [load_corpus(DataConfig(corpus=c)).name for c in ("auto", "auto", "auto-raw")]
    assert names == ["embedded"] * 3
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2
    read, ways = caplog.messages[0].split("\n")
    assert "isn't in NORMLAB_DATA=elsewhere: data=auto reads Python's reference text" in read
    for way in ("NORMLAB_DATA=DIR", "wikitext-2-v1/wiki.{train,valid,test}.tokens", "wikitext2"):
        assert way in ways
    assert "wikitext-2-raw-v1/wiki.{train,valid,test}.raw" in caplog.messages[1]


def test_a_notice_that_a_command_before_has_given_is_not_repeated(nowhere, caplog, monkeypatch):
    monkeypatch.setattr(corpora, "_told", set())
    monkeypatch.setenv("NORMLAB_NOTICE", "off")
    assert load_corpus(DataConfig()).name == "embedded"
    monkeypatch.setenv("NORMLAB_NOTICE", "on")
    load_corpus(DataConfig())
    assert len(caplog.records) == 1


def test_what_was_named_does_not_fall_back(nowhere, tmp_path):
    named = [{"corpus": "auto", "root": str(tmp_path)}, {"corpus": "wikitext2"}]
    for fields in (*named, {"corpus": "wikitext2-raw"}):
        with pytest.raises(CorpusUnavailableError, match="can.t be had"):
            load_corpus(DataConfig(**fields))


def test_auto_takes_wikitext2_without_a_notice(monkeypatch, caplog):
    monkeypatch.setattr(wikitext, "find", lambda name, root: lambda split: f"{name} {split}")
    corpus = load_corpus(DataConfig(corpus="auto"))
    assert corpus.name == "wikitext2"
    assert corpus.title == "WikiText-2 (wikitext-2-v1)"
    assert corpus.text("valid") == "wikitext2 valid"
    assert not caplog.records


def test_revision_says_what_is_unverified(monkeypatch):
    monkeypatch.setattr(wikitext, "find", lambda name, root: str)
    assert load_corpus(DataConfig(corpus="wikitext2")).revision == "wikitext-2-v1"
    raw = load_corpus(DataConfig(corpus="wikitext2-raw"))
    assert raw.revision == "wikitext-2-raw-v1, train split unverified"
    assert raw.title == "WikiText-2 (wikitext-2-raw-v1)"


def test_splits_are_read_when_asked_for_and_once():
    asked = []

    def read(split):
        asked.append(split)
        return split

    corpus = Corpus("toy", "1", "Toy", read)
    assert asked == []
    assert [corpus.text("valid"), corpus.text("valid"), corpus.text("test")] == [
        "valid", "valid", "test",
    ]  # fmt: skip
    assert asked == ["valid", "test"]
    with pytest.raises(UnknownNameError, match="Did you mean 'valid'"):
        corpus.text("validation")


@REAL
def test_the_real_text_is_found_by_auto():
    corpus = load_corpus(DataConfig())
    assert corpus.name == "wikitext2"
    assert corpus.sha256("valid") == wikitext.FACTS["wikitext2", "valid"].sha256
