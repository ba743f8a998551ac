import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from normlab.data import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    PretrainedTokenizer,
    TokenizerDamagedError,
    WordTokenizer,
    embedded,
    load_tokenizer,
)

TEXT = embedded.read("train")[:60_000] + "naïve “quotes” — 東京 🙂\n"
BPE = BPETokenizer.train(TEXT, 600)
WORD = WordTokenizer.train(TEXT)
ANY = st.text(max_size=60) | st.text(alphabet=" \n\r\t\x85\u2028\xa0ab<>é東🙂", max_size=60)


def spans(text, ends):
    return [text[a:b] for a, b in pairwise([0, *ends])]


# --- byte-level BPE


def test_bpe_sizes_and_name():
    assert BPE.vocab_size == 600
    assert BPE.name == "bpe-600"
    assert BPE.bos is None
    ids = BPE.encode(TEXT).ids
    assert ids.dtype == np.int32
    assert 0 <= ids.min() <= ids.max() < 600
    assert len(ids) < 0.7 * len(TEXT.encode())  # the merges do merge


@given(ANY)
@example("")
@example("\n\n \n")
@example("\x00\x85\u2028\r\n")
def test_bpe_gives_any_text_back_and_ends_are_those_of_the_library(text):
    # The base class encodes the text whole and takes offsets from `tokenizers`: another way
    # to the same ids and ends, which shows too that no token crosses a newline.
    ids, ends = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert "".join(spans(text, ends.tolist())) == text
    whole = PretrainedTokenizer.encode(BPE, text)
    np.testing.assert_array_equal(ids, whole.ids)
    np.testing.assert_array_equal(ends, whole.ends)


def test_bpe_tokens_that_share_a_character_end_behind_it():
    ids, ends = BPE.encode("a🜁b")  # four bytes that were never merged
    assert len(ids) == 6
    assert ends.tolist() == [1, 2, 2, 2, 2, 3]


@pytest.mark.system
def test_bpe_training_is_the_same_in_another_process():
    code = (
        "import sys; from normlab.data import BPETokenizer, embedded\n"
        "text = embedded.read('train')[:60_000]\n"
        "print(BPETokenizer.train(text, 600).hash)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert out.stdout.strip() == BPETokenizer.train(embedded.read("train")[:60_000], 600).hash


def test_the_hash_tells_tokenizers_apart():
    hashes = [BPE.hash, WORD.hash, BPETokenizer.train(TEXT, 599).hash]
    hashes += [BPETokenizer.train(TEXT[:5000], 600).hash, WordTokenizer.train(TEXT[:5000]).hash]
    assert len(set(hashes)) == 5


# --- words


def test_words_are_ordered_by_count_then_alphabet():
    word = WordTokenizer.train("b a c\nc <unk> d\n")
    assert word.words == ("<unk>", "<eos>", "c", "a", "b", "d")
    assert word.vocab_size == 6
    assert word.name == "word-6"


def test_words_and_line_ends():
    word = WordTokenizer.train("b a\n")
    ids, ends = word.encode(" a b x\n\n<unk> b")
    assert ids.tolist() == [2, 3, 0, 1, 1, 0, 3]
    assert ends.tolist() == [2, 4, 6, 7, 8, 13, 15]


def test_words_come_back_in_wikitexts_layout():
    text = " \n = Title = \n \n One <unk> and more . \n"
    word = WordTokenizer.train(text)
    assert word.decode(word.encode(text).ids) == text


@given(ANY)
@example("a\x1cb\x85c\u3000d")
def test_words_are_pythons_words(text):
    # `str.split` is the definition of the published counts.
    ids, ends = WORD.encode(text)
    words = [s.split()[0] for s in spans(text, ends.tolist()) if s.strip()]
    assert words == text.split()
    assert len(ids) == len(text.split()) + text.count("\n")


def test_bad_vocabularies_are_refused():
    with pytest.raises(ValueError, match=r"expected \['<unk>', '<eos>'\]"):
        WordTokenizer(["a", "b"])
    with pytest.raises(ValueError, match=r"'a' 2 times"):
        WordTokenizer(["<unk>", "<eos>", "a", "a"])


# --- tokenizers made elsewhere


def pretrained() -> PretrainedTokenizer:
    """Of a tokenizer.json with a special token, a normalizer and a template that would add BOS."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {"<s>": 0, "[UNK]": 1, "one": 2, "two": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.enable_truncation(2)
    return PretrainedTokenizer(tokenizer.to_str(), "toy", bos=0)


def test_pretrained_adds_nothing_and_cuts_nothing():
    tokenizer = pretrained()
    ids, ends = tokenizer.encode("One  two three\nONE")
    assert ids.tolist() == [2, 3, 1, 2]
    assert ends.tolist() == [3, 8, 14, 18]
    assert tokenizer.bos == 0
    assert tokenizer.vocab_size == 4
    assert tokenizer.name == "toy"
    assert tokenizer.decode(ids) == "one two [UNK] one"


# --- saved and loaded


@pytest.mark.parametrize("kind", ["bpe", "word", "pretrained"])
def test_saved_and_loaded_is_the_same(kind, tmp_path):
    made = {"bpe": BPE, "word": WORD}.get(kind)
    made = made or pretrained()
    made.save(tmp_path / "run" / "tokenizer")
    loaded = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert type(loaded) is type(made)
    for attribute in ("name", "vocab_size", "bos", "prefix", "hash"):
        assert getattr(loaded, attribute) == getattr(made, attribute)
    for a, b in zip(loaded.encode(TEXT), made.encode(TEXT), strict=True):
        np.testing.assert_array_equal(a, b)


CARD = "tokenizer_card.json"
CHANGES = [
    (BPE, "tokenizer.json", lambda raw: raw.replace(b"the", b"teh")),
    (WORD, "words.txt", lambda raw: raw.replace(b"the", b"teh")),
    (WORD, "words.txt", lambda raw: b"\xff"),
    (BPE, CARD, lambda raw: json.dumps(json.loads(raw) | {"bos": 7}).encode()),
]


@pytest.mark.parametrize(("tokenizer", "file", "change"), CHANGES)
def test_what_has_changed_is_refused(tokenizer, file, change, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / file).write_bytes(change((tmp_path / file).read_bytes()))
    with pytest.raises(TokenizerDamagedError, match="has changed"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"null", b"\xff"])
def test_a_card_that_cannot_be_read_is_damage(tmp_path, content):
    WORD.save(tmp_path)
    (tmp_path / CARD).write_bytes(content)
    with pytest.raises(TokenizerDamagedError, match=r"tokenizer_card\.json can't be read"):
        load_tokenizer(tmp_path)


# --- the real text


@pytest.mark.system
@pytest.mark.skipif("NORMLAB_DATA" not in os.environ, reason="NORMLAB_DATA is not set")
def test_wikitext_comes_back_exactly(tmp_path):
    from normlab.data import DataConfig, load_corpus

    text = load_corpus(DataConfig(corpus="wikitext2")).text("valid")
    word = WordTokenizer.train(text)
    assert word.decode(word.encode(text).ids) == text
    assert BPE.decode(BPE.encode(text).ids) == text


# --- bytes and characters


@given(ANY)
def test_bytes_and_characters_give_any_text_back_and_end_where_they_end(text):
    ids, ends = (bytes_ := ByteTokenizer()).encode(text)
    assert bytes(ids.tolist()) == text.encode()
    assert bytes_.decode(ids) == text
    assert [i for i, c in enumerate(text, 1) for _ in c.encode()] == ends.tolist()
    chars = CharTokenizer.train([text, "a"])
    assert chars.decode(chars.encode(text).ids) == text
    assert chars.encode(text).ends.tolist() == list(range(1, len(text) + 1))
    assert chars.vocab_size == len({*text, "a"}) + 1


def test_a_character_that_was_never_seen_is_token_0():
    chars = CharTokenizer.train("ba")
    assert chars.encode("abcA").ids.tolist() == [1, 2, 0, 0]
    assert chars.decode([1, 0]) == "a�"
    with pytest.raises(ValueError, match="characters: expected each once"):
        CharTokenizer("aa")


@pytest.mark.parametrize("made", [ByteTokenizer(), CharTokenizer.train("a\r\n é🙂"), WORD, BPE])
def test_each_comes_back_as_it_was_saved_and_encodes_texts_apart(made, tmp_path):
    made.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.hash, again.name, again.vocab_size) == (made.hash, made.name, made.vocab_size)
    texts = ["a é", "", "🙂\na"]
    for text, ids in zip(texts, again.encode_each(texts), strict=True):
        assert ids.tolist() == made.encode(text).ids.tolist()


def test_documents_and_one_text_train_alike():
    halves = [TEXT[: TEXT.index("\n", 30_000) + 1], TEXT[TEXT.index("\n", 30_000) + 1 :]]
    assert WordTokenizer.train(halves).hash == WORD.hash
    assert CharTokenizer.train(iter(halves)).hash == CharTokenizer.train(TEXT).hash
    assert BPETokenizer.train(iter(halves), 600).hash == BPE.hash
