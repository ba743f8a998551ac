import logging
import os
from itertools import pairwise

import numpy as np
import pytest

from normlab.data import (
    Batches,
    ByteTokenizer,
    Corpus,
    CorpusUnavailableError,
    DataConfig,
    Tokenized,
    WordTokenizer,
    load_tokens,
    shards,
)
from normlab.data import tokens as tokens_file

REAL = pytest.mark.skipif("NORMLAB_DATA" not in os.environ, reason="NORMLAB_DATA is not set")


def toy(**changes: str) -> Corpus:
    texts = {"train": "a b c\n" * 50, "valid": "a b\n", "test": "c d\n"} | changes
    return Corpus("toy", "1", "Toy", texts.__getitem__)


def config(tmp_path, **settings) -> DataConfig:
    return DataConfig(corpus="embedded", cache=str(tmp_path), **settings)


@pytest.mark.parametrize("settings", [{"vocab_size": 500}, {"tokenizer": "word"}])
def test_splits_are_the_text_in_tokens(settings, tmp_path):
    tokenized = load_tokens(config(tmp_path, **settings))
    assert tokenized.tokenizer.kind == settings.get("tokenizer", "bpe")
    for split in ("valid", "test"):
        text = tokenized.corpus.text(split)
        ids, ends = tokenized.encoding(split)
        fresh = tokenized.tokenizer.encode(text)
        np.testing.assert_array_equal(ids, fresh.ids)
        np.testing.assert_array_equal(ends, fresh.ends)
        np.testing.assert_array_equal(tokenized.split(split), ids)
        assert len(text) - 1 <= ends[-1] <= len(text)


def test_splits_are_mapped_and_read_only(tmp_path):
    ids = load_tokens(config(tmp_path, tokenizer="word")).split("valid")
    assert isinstance(ids, np.memmap)
    assert ids.dtype == np.int32
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_the_second_time_nothing_is_computed(tmp_path, monkeypatch):
    first = load_tokens(config(tmp_path, vocab_size=500))
    ids = first.split("valid")
    for cls in (tokens_file.BPETokenizer, tokens_file.WordTokenizer):
        monkeypatch.setattr(cls, "train", None)
        monkeypatch.setattr(cls, "encode", None)
    again = load_tokens(config(tmp_path, vocab_size=500))
    np.testing.assert_array_equal(again.split("valid"), ids)
    assert again.tokenizer.hash == first.tokenizer.hash


def entries(tmp_path, kind):
    return {p.name for p in (tmp_path / kind).iterdir() if not p.name.startswith(".")}


def test_another_setting_is_another_entry(tmp_path):
    for settings in ({"vocab_size": 500}, {"vocab_size": 501}, {"tokenizer": "word"}):
        load_tokens(config(tmp_path, **settings)).split("valid")
    assert len(entries(tmp_path, "tokenizers")) == len(entries(tmp_path, "tokens")) == 3


def test_another_text_or_version_is_another_entry(tmp_path, monkeypatch):
    word = WordTokenizer.train("a b c\n")
    old = Tokenized(toy(), word, tmp_path).split("valid")
    new = Tokenized(toy(valid="b a\n"), word, tmp_path).split("valid")
    assert old.tolist() != new.tolist()
    monkeypatch.setattr(tokens_file, "FORMAT", 2)
    Tokenized(toy(), word, tmp_path).split("valid")
    monkeypatch.setattr(tokens_file, "version", lambda package: "0.0.1")
    Tokenized(toy(), word, tmp_path).split("valid")
    assert len(entries(tmp_path, "tokens")) == 4


def test_a_damaged_cache_is_made_anew(tmp_path, caplog):
    tokenized = Tokenized(toy(), WordTokenizer.train("a b c\n"), tmp_path)
    expected = tokenized.split("train").tolist()
    (file,) = (tmp_path / "tokens").glob("*/ids.npy")
    file.write_bytes(file.read_bytes()[:-4] + b"\7\0\0\0")
    assert tokenized.split("train").tolist() == expected
    assert "ids.npy has changed" in caplog.text


def test_a_damaged_tokenizer_is_trained_anew(tmp_path, caplog):
    first = load_tokens(config(tmp_path, tokenizer="word")).tokenizer
    (file,) = (tmp_path / "tokenizers").glob("*/words.txt")
    file.write_text("<unk>\n<eos>\n")
    assert load_tokens(config(tmp_path, tokenizer="word")).tokenizer.hash == first.hash
    assert "words.txt has changed" in caplog.text


def test_a_tokenizer_at_hand_needs_no_training_text(tmp_path):
    def read(split):
        if split == "train":
            raise CorpusUnavailableError("no training split")
        return "a b x\n"

    tokenized = Tokenized(Corpus("toy", "1", "Toy", read), WordTokenizer.train("a b\n"), tmp_path)
    assert tokenized.split("test").tolist() == [2, 3, 0, 1]
    with pytest.raises(CorpusUnavailableError):
        tokenized.split("train")
    assert list((tmp_path / "tokens").glob("**/ids.npy"))  # the test split's, and no half entry
    assert len(entries(tmp_path, "tokens")) == 1


def test_words_that_are_not_as_many_as_published_are_refused(tmp_path):
    forged = Corpus("wikitext2", "?", "?", lambda split: "a b\n")
    with pytest.raises(ValueError, match=r"3 words, expected 217,646"):
        Tokenized(forged, WordTokenizer.train("a b\n"), tmp_path).split("valid")


def of_file(tmp_path, text=None, **settings):
    """The tokens of a file of 200 documents, or of this text."""
    file = tmp_path / "own.txt"
    if text is not None:
        file.write_text(text)
    elif not file.exists():
        file.write_text("".join(f"document {i}\n\n" for i in range(200)))
    given = {"corpus": "text", "path": str(file), "cache": str(tmp_path / "cache")}
    return load_tokens(DataConfig(**given | {"tokenizer": "byte"} | settings))


@pytest.mark.parametrize("settings", [{"tokenizer": "bpe", "vocab_size": 280}, {}])
def test_a_text_of_documents_is_their_tokens_one_after_another(settings, tmp_path):
    tokens = of_file(tmp_path, **settings)
    for split in ("train", "valid", "test"):
        ids = tokens.split(split)
        assert ids.dtype == np.uint16
        assert tokens.tokenizer.decode(ids) == tokens.corpus.text(split)
    assert tokens.tokenizer.decode(Batches(ids, 1, 5, 0).at(3).inputs[0]) in tokens.corpus.text(
        split
    )


def test_an_interrupted_text_goes_on_and_a_changed_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    whole = of_file(tmp_path / "other")
    monkeypatch.setattr(shards, "BATCH", 100)
    monkeypatch.setattr(shards, "PART", 400)
    encoded, encode = [], ByteTokenizer.encode_each

    def mortal(self, texts):
        encoded.append(len(texts))
        if len(encoded) == 12:
            raise KeyboardInterrupt
        return encode(self, texts)

    monkeypatch.setattr(ByteTokenizer, "encode_each", mortal)
    with pytest.raises(KeyboardInterrupt):
        of_file(tmp_path).split("train")
    file = tmp_path / "own.txt"
    before = file.read_text()
    with pytest.raises(ValueError, match=r"own.txt train has changed since its tokenization began"):
        of_file(tmp_path, text=before.replace("document 7\n", "document x\n")).split("train")
    ids = of_file(tmp_path, text=before).split("train")
    assert encoded[12] < 12
    assert sum(encoded[12:]) < 180
    monkeypatch.undo()
    np.testing.assert_array_equal(ids, whole.split("train"))
    assert not list((tmp_path / "cache" / "unfinished").iterdir())
    assert len(entries(tmp_path / "cache", "tokens")) == 1


def test_merges_are_learned_from_the_first_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_file, "LEARNED_FROM", 1000)
    text = "".join(f"first {i}\n\n" for i in range(300)) + "zzzzzzzz\n\n" * 300
    tokenizer = of_file(tmp_path, text=text, tokenizer="bpe", vocab_size=280).tokenizer
    assert tokenizer.encode("zz").ids.tolist() == 2 * tokenizer.encode("z").ids.tolist()
    assert len(tokenizer.encode("first").ids) == 1


def test_a_tokenizer_of_elsewhere_is_opened_by_who_can(tmp_path):
    tokens = of_file(tmp_path, tokenizer="byte")
    config = DataConfig(corpus="embedded", cache=str(tmp_path), tokenizer="hf:DIR")
    assert load_tokens(config, {"hf:DIR": tokens.tokenizer}.get).tokenizer is tokens.tokenizer
    with pytest.raises(ValueError, match="hf:DIR: no opener was given"):
        load_tokens(config)


@pytest.mark.system
@REAL
def test_wikitext2_has_the_published_counts(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    tokenized = load_tokens(DataConfig(corpus="wikitext2", tokenizer="word", cache=str(tmp_path)))
    assert tokenized.tokenizer.vocab_size == 33_278
    counts = {split: len(tokenized.split(split)) for split in ("train", "valid", "test")}
    assert counts == {"train": 2_088_628, "valid": 217_646, "test": 245_569}
    assert not caplog.text


@pytest.mark.system
@REAL
def test_bpe_on_wikitext2_counts_every_byte_and_word(tmp_path):
    tokenized = load_tokens(DataConfig(corpus="wikitext2", cache=str(tmp_path)))
    assert tokenized.tokenizer.name == "bpe-4096"
    text, (ids, ends) = tokenized.corpus.text("test"), tokenized.encoding("test")
    assert tokenized.tokenizer.decode(ids) == text
    cuts = [0, *ends[999::1000].tolist(), len(text)]
    assert sum(len(text[a:b].encode()) for a, b in pairwise(cuts)) == 1_256_449
