"""The named protocols, each against a plain loop over its definition."""

import os
import re

import numpy as np
import pytest

from normlab.data import DataConfig, Encoding, WordTokenizer, load_corpus
from normlab.data.tokenizer import CharTokenizer
from normlab.evaluation.protocols import protocols
from normlab.evaluation.protocols.texts import detokenized, joined_rows, pages

WIKI = "".join(
    f" = Title {i} = \n \n Words of page {i} , and more : {'abc ' * i}. \n" for i in range(1, 12)
)


class Characters:
    """A tokenizer of which each character is a token."""

    has_unknown = False

    def __init__(self, bos=None):
        self.name, self.vocab_size, self.bos, self.hash = "characters", 256, bos, f"chars{bos}"
        self.prefix = bos

    def encode(self, text):
        return Encoding(np.array([ord(c) for c in text], np.int32), np.arange(len(text)) + 1)


def cut(name, length, bos=None, text=WIKI, n=None):
    return protocols[name].windows(text, Characters(bos), length, n)


def asked(windows):
    return "".join(map(chr, windows.targets[windows.scored]))


def test_the_table_of_the_design():
    rows = {p: (protocols[p].window, protocols[p].fixed, protocols[p].reported) for p in protocols}
    assert rows == {
        "window": (512, False, "perplexity"),
        "word": (512, False, "perplexity"),
        "gptq": (2048, True, "perplexity"),
        "llamacpp": (512, True, "perplexity"),
        "lm-eval": (2048, False, "word_perplexity"),
        "lm-eval-0.4.9.2": (2048, False, "word_perplexity"),
        "stride": (1024, False, "perplexity"),
    }
    assert {p: protocols[p].version for p in protocols} == dict.fromkeys(rows, 1) | {"lm-eval": 2}


def test_window_with_bos_scores_the_whole_text_and_each_window_begins_with_it():
    windows = cut("window", 32, bos=1)
    assert asked(windows) == WIKI
    assert (windows.inputs[:, 0] == 1).all()
    assert windows.words.sum() == len(WIKI.split())
    assert windows.bytes.sum() == len(WIKI.encode())


def test_window_without_bos_keeps_its_first_token_as_context():
    windows = cut("window", 32)
    assert asked(windows) == "".join(c for i, c in enumerate(WIKI) if i % 32)
    assert windows.bytes.sum() == windows.counts.sum()


def test_gptq_drops_the_tail_and_scores_all_but_each_first():
    windows, text = cut("gptq", 50), joined_rows(WIKI)
    assert len(windows) == len(text) // 50
    assert (windows.counts == 49).all()
    assert asked(windows) == "".join(
        text[i + 1 : i + 50] for i in range(0, len(text) // 50 * 50, 50)
    )
    assert cut("gptq", 50, bos=1).inputs[0, 0] == 1
    assert (cut("gptq", 50, bos=1).inputs[1:, 0] != 1).all()


@pytest.mark.parametrize("bos", [None, 1])
def test_llamacpp_scores_the_second_half_behind_a_bos(bos):
    windows = cut("llamacpp", 64, bos=bos)
    text = WIKI if bos is None else chr(1) + WIKI
    starts = range(0, len(text) // 64 * 64, 64)
    assert (windows.counts == 31).all()
    assert asked(windows) == "".join(text[i + 33 : i + 64] for i in starts)
    first = [ord(text[i]) if bos is None else 1 for i in starts]
    assert windows.inputs[:, 0].tolist() == first
    assert windows.inputs[:, 1].tolist() == [ord(text[i + 1]) for i in starts]


def test_stride_scores_all_but_the_first_of_the_joined_rows():
    assert asked(cut("stride", 30)) == joined_rows(WIKI)[1:]
    assert asked(cut("stride", 30, bos=1)) == joined_rows(WIKI)


def test_lm_eval_scores_each_page_once_and_counts_its_words_before_detokenization():
    windows, found = cut("lm-eval", 24, bos=1), pages(WIKI)
    assert asked(windows) == "".join(map(detokenized, found))
    assert windows.words.sum() == sum(len(re.split(r"\s+", page)) for page in found)
    assert windows.bytes.sum() == sum(len(page.encode()) for page in found)
    assert (windows.inputs[:, 0] == 1).sum() == len(found)


def test_lm_eval_puts_a_token_before_a_page_of_a_model_without_bos():
    tokenizer, found = Characters(), pages(WIKI)
    bare = protocols["lm-eval"].windows(WIKI, tokenizer, 24)
    assert asked(bare) == "".join(detokenized(page)[1:] for page in found)
    tokenizer.prefix = 2  # its end of text
    windows = protocols["lm-eval"].windows(WIKI, tokenizer, 24)
    assert asked(windows) == "".join(map(detokenized, found))
    assert (windows.inputs[:, 0] == 2).sum() == len(found)
    others = ((name, protocols[name].windows(WIKI, tokenizer, 24)) for name in ("window", "stride"))
    assert [name for name, made in others if (made.inputs == 2).any()] == []


def test_lm_eval_from_0_4_9_2_on_scores_the_bos_that_a_tokenizer_adds():
    windows, found = cut("lm-eval-0.4.9.2", 24, bos=1), pages(WIKI)
    assert asked(windows) == "".join(chr(1) + detokenized(page) for page in found)
    begins = windows.scored & (windows.targets == 1)
    assert (begins.sum(), set(windows.inputs[begins])) == (len(found), {1})
    before = cut("lm-eval", 24, bos=1)
    assert (windows.words.sum(), windows.bytes.sum()) == (before.words.sum(), before.bytes.sum())
    tokenizer = Characters()  # which adds none
    for tokenizer.prefix in (None, 2):
        old, new = (
            protocols[name].windows(WIKI, tokenizer, 24) for name in ("lm-eval", "lm-eval-0.4.9.2")
        )
        assert (old.inputs.tolist(), old.scored.tolist()) == (
            new.inputs.tolist(),
            new.scored.tolist(),
        )


def test_word_scores_all_words_but_the_first_and_needs_a_word_tokenizer():
    tokenizer = WordTokenizer.train(WIKI)
    windows = protocols["word"].windows(WIKI, tokenizer, 16)
    ids = tokenizer.encode(WIKI).ids
    assert windows.targets[windows.scored].tolist() == ids[1:].tolist()
    with pytest.raises(ValueError, match=r"characters makes subwords.*protocol=window"):
        cut("word", 16)


@pytest.mark.parametrize(("made", "name"), [(WordTokenizer, "word"), (CharTokenizer, "window")])
def test_no_bytes_are_counted_of_a_text_that_is_not_all_told(made, name):
    tokenizer, protocol = made.train("some words\n"), protocols[name]
    assert protocol.windows("words some\n some", tokenizer, 16).bytes.sum() > 0
    assert protocol.windows("words some\n ¿others?", tokenizer, 16).bytes.sum() == 0


@pytest.mark.system
@pytest.mark.skipif("NORMLAB_DATA" not in os.environ, reason="needs WikiText-2 (NORMLAB_DATA)")
def test_word_scores_245568_tokens_of_wikitext():
    corpus = load_corpus(DataConfig(corpus="wikitext2"))
    tokenizer = WordTokenizer.train(corpus.text("train"))
    windows = protocols["word"].windows(corpus.text("test"), tokenizer, 256)
    assert windows.counts.sum() == 245_569 - 1
    assert windows.bytes.sum() == len(corpus.text("test").encode()) - 2  # " \n", the first <eos>


def test_the_first_windows_are_the_same_as_of_all():
    for name, bos in (("window", 1), ("lm-eval", 1), ("stride", None)):
        some, every = cut(name, 24, bos, n=3), cut(name, 24, bos)
        assert len(some) == 3
        assert some.targets.tolist() == every.targets[:3].tolist()
        assert some.words.tolist() == every.words[:3].tolist()


def test_windows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"window = 600 .*longest window that fits is window=512"):
        protocols["window"].check_window(600, 512)
    with pytest.raises(ValueError, match="at least 2"):
        protocols["window"].check_window(1, 512)
    with pytest.raises(ValueError, match="finds nothing to score"):
        cut("gptq", 2048, text="short")
    with pytest.raises(ValueError, match="Did you mean 'stride'"):
        protocols["strid"]


def test_default_windows():
    assert protocols["window"].default_window(4096) == 512
    assert protocols["window"].default_window(128) == 128
    assert protocols["window"].default_window(1024, trained=64) == 64
    assert protocols["gptq"].default_window(1024, trained=64) == 2048
