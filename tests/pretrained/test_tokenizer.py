"""Tokenizers of checkpoints: against the rules they come from, written out slowly."""

import itertools
import json
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.data import load_tokenizer
from normlab.pretrained.source import CheckpointError
from normlab.pretrained.tokenizer import _listed, from_folder, from_metadata
from tests.support.small_checkpoints import letters, write_tokenizer

PIECES = ["▁", "a", "b", "c", "ab", "▁a", "bc", "abc", "▁ab", "aa", "\n"]
SPM = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [
        "<unk>", "<s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES, "  ", "\n\n",
    ],
    "tokenizer.ggml.scores": [
        *[0.0] * 258, -9.0, -9.1, -9.2, -9.3, -4.0, -2.0, -1.0, -3.0, -5.0, -6.0, -9.4, -1e3, -1e3,
    ],
    "tokenizer.ggml.token_type": [2, 3, *([6] * 256), *([1] * len(PIECES)), 4, 4],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.add_space_prefix": False,
}  # fmt: skip
BPE = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*letters(), "Ġa", "Ġab", "12", "<|end|>", "ab"],
    "tokenizer.ggml.merges": ["Ġ a", "Ġa b", "1 2", "a b"],
    "tokenizer.ggml.token_type": [1] * 259 + [3, 1],
    "tokenizer.ggml.bos_token_id": 259,
}


@cache
def spm():
    return from_metadata(SPM, "t")


@cache
def bpe():
    return from_metadata(BPE, "t")


def texts(metadata, text, made=None):
    """The tokens of a text as the vocabulary spells them."""
    ids = (made or from_metadata(metadata, "t")).encode(text).ids
    return [metadata["tokenizer.ggml.tokens"][i] for i in ids]


def slow_sentencepiece(text):
    """The best-scored neighbours joined, leftmost first, until no two make a token."""
    scores = dict(zip(PIECES, SPM["tokenizer.ggml.scores"][258:], strict=False))
    scores["▁▁"] = 1.0  # defined by the user: before all others
    pieces = list(text.replace(" ", "▁"))
    while True:
        pairs = [
            (scores.get(a + b, -1e9), -i) for i, (a, b) in enumerate(itertools.pairwise(pieces))
        ]
        if not pairs or max(pairs)[0] == -1e9:
            return pieces
        at = -max(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


@given(st.text("ab c", max_size=20))
def test_sentencepiece_joins_by_score(text):
    tokens = [t.replace(" ", "▁") for t in texts(SPM, text, spm())]
    assert tokens == slow_sentencepiece(text)


@given(st.text())
def test_sentencepiece_brings_any_text_back(text):
    ids = spm().encode(text).ids
    assert 0 not in ids  # no unknowns: bytes instead
    if "<" not in text:  # specials may be spelled out
        assert spm().decode(ids) == text


def test_sentencepiece_puts_a_blank_before_a_text_where_asked():
    prefixed = {**SPM, "tokenizer.ggml.add_space_prefix": True}
    made = from_metadata(prefixed, "t")
    assert texts(prefixed, "ab", made) == ["▁ab"]
    assert made.decode(made.encode("ab c").ids) == "ab c"


def test_tokens_that_are_found_before_all_else():
    assert texts(SPM, "a\n\n\nb") == ["a", "\n\n", "\n", "b"]
    assert texts(SPM, "é") == ["<0xC3>", "<0xA9>"]
    assert texts(BPE, "a<|end|>b") == ["a", "<|end|>", "b"]


@given(st.text())
def test_byte_level_brings_any_text_back(text):
    encoding = bpe().encode(text)
    assert bpe().decode(encoding.ids) == text
    assert (encoding.ends[-1] if text else 0) == len(text)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("gpt-2", ["ab", "Ġab", "Ġ", "12", "3"]),
        ("smollm", ["ab", "Ġab", "Ġ", "1", "2", "3"]),
        ("llama-bpe", ["ab", "Ġab", "Ġ", "12", "3"]),
        ("qwen2", ["ab", "Ġab", "Ġ", "1", "2", "3"]),
    ],
)
def test_cutting_rules(cut, expected):
    assert texts(kind_of_bpe(cut), "ab ab 123") == expected


def kind_of_bpe(pre):
    return BPE | {"tokenizer.ggml.pre": pre}


BARE = {key: value for key, value in BPE.items() if "bos" not in key}
END = {"tokenizer.ggml.eos_token_id": 3}


@pytest.mark.parametrize(
    ("metadata", "bos", "prefix"),
    [
        (SPM, 1, 1),
        (SPM | {"tokenizer.ggml.add_bos_token": False}, None, 1),
        (BPE, None, 259),
        (BPE | END, None, 259),
        (BARE | END, None, 3),
        (BARE, None, None),
        (BPE | {"tokenizer.ggml.add_bos_token": True}, 259, 259),
        (kind_of_bpe("llama-bpe"), 259, 259),
        (kind_of_bpe("llama3"), 259, 259),
        (kind_of_bpe("falcon3"), 259, 259),
        (kind_of_bpe("smaug-bpe"), None, 259),
        (kind_of_bpe("dbrx"), None, 259),
    ],
)
def test_bos_is_what_the_model_was_trained_with(metadata, bos, prefix):
    """A text may need a token before it where the model needs none."""
    tokenizer = from_metadata(metadata, "t")
    assert (tokenizer.bos, tokenizer.prefix) == (bos, prefix)


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", ["Ġab"]), ("dbrx", ["Ġ", "ab"])])
def test_a_word_that_is_a_token_is_not_merged_by_llama3_alone(pre, expected):
    """A dbrx vocabulary cuts a text alike, and merges what it has cut."""
    metadata = kind_of_bpe(pre) | {"tokenizer.ggml.merges": ["a b"]}
    assert texts(metadata, " ab") == expected


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (BPE | {"tokenizer.ggml.model": "gpt"}, "unknown tokenizer .* 'gpt'.*Did you mean 'gpt2'"),
        (kind_of_bpe("gpt2"), "unknown cutting rule .*Did you mean 'gpt-2'"),
        (BPE | {"tokenizer.ggml.merges": ["x yz"]}, "no tokenizer can be made"),
        ({key: value for key, value in BPE.items() if "merges" not in key}, "merges"),
    ],
)
def test_what_a_file_does_not_say_well(metadata, message):
    with pytest.raises(CheckpointError, match=message):
        from_metadata(metadata, "t")


def with_template(folder, settings=None, single="{} $A", padded=None):
    """A directory's tokenizer that puts token 7 before a text, or where `single` says."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token = tokenizer.id_to_token(7)
    tokenizer.post_processor = TemplateProcessing(
        single=single.format(token), special_tokens=[(token, 7)]
    )
    if padded is not None:
        tokenizer.enable_padding(direction=padded, length=16, pad_id=5)
        tokenizer.enable_truncation(1)
    tokenizer.save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_folders_bos(tmp_path):
    write_tokenizer(tmp_path)
    assert from_folder(tmp_path, {"bos_token_id": 3}, "t").bos is None
    with_template(tmp_path)
    assert from_folder(tmp_path, {"bos_token_id": 7}, "t").bos == 7
    with_template(tmp_path, {"add_bos_token": False})
    assert from_folder(tmp_path, {"bos_token_id": 7}, "t").bos is None
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert from_folder(tmp_path, {"bos_token_id": 3}, "t").bos == 3
    named = {"add_bos_token": True, "bos_token": letters()[11]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert from_folder(tmp_path, {"bos_token_id": 3}, "t").bos == 11


@pytest.mark.parametrize("padded", [None, "left", "right"])
@pytest.mark.parametrize(
    ("single", "bos"), [("{} $A", 7), ("$A {}", None), ("{0} $A {0}", 7), ("$A", None)]
)
def test_a_folders_bos_is_no_padding_and_no_end_of_text(single, bos, padded, tmp_path):
    with_template(tmp_path, single=single, padded=padded)
    for eos in (7, [9, 7], 4):  # one token may be both
        assert from_folder(tmp_path, {"eos_token_id": eos}, "t").bos == bos


@pytest.mark.parametrize(
    ("settings", "config", "prefix"),
    [
        (None, {"bos_token_id": 3, "eos_token_id": 4}, 3),
        (None, {"eos_token_id": [4, 5]}, 4),
        (None, {}, None),
        ({"bos_token": "c", "eos_token": "d"}, {"bos_token_id": 3}, "c"),
        ({"bos_token": None, "eos_token": {"content": "d"}}, {"bos_token_id": 3}, "d"),
    ],
    ids=["config.json", "several ends", "neither", "named", "the end is named, BOS is none"],
)
def test_a_folders_prefix(tmp_path, settings, config, prefix):
    write_tokenizer(tmp_path)
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    made = from_folder(tmp_path, config, "t")
    assert made.bos is None
    assert made.prefix == (letters().index(prefix) if isinstance(prefix, str) else prefix)
    made.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").prefix == made.prefix


def test_a_special_token_without_a_row_is_ordinary_text(tmp_path):
    from tokenizers import AddedToken, Tokenizer

    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<end>", "<image>")])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    whole = from_folder(tmp_path, {"vocab_size": 258}, "t")
    assert whole.encode("a<end><image>").ids.tolist()[1:] == [256, 257]
    assert whole.definition == (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    made = from_folder(tmp_path, {"vocab_size": 257}, "t")
    assert made.vocab_size == 257
    ids = made.encode("a<end><image>").ids
    assert ids[1] == 256
    assert len(ids) == 2 + len("<image>")
    assert max(ids) < 257
    assert made.decode(ids) == "a<end><image>"
    made.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("<image>").ids.max() < 256


def test_a_folder_without_a_good_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        from_folder(tmp_path, {}, "t")
    for content in (b'{"model": 3}', b"\xff"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json can't be read"):
            from_folder(tmp_path, {}, "t")


@pytest.mark.parametrize("token", [3, {"id": 3}])
def test_a_token_that_is_named_by_no_text(token, tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": token}))
    with pytest.raises(CheckpointError, match=r"bos_token = .*3.*: expected a token's text"):
        from_folder(tmp_path, {}, "t")


@pytest.mark.parametrize(
    ("given", "read"), [(-1, None), ([-1, 3], 3), ([], None), (None, None), (0, 0), ([2, 1], 2)]
)
def test_an_id_below_zero_is_none(given, read):
    """−1 is written for none, and would read the embedding's last row."""
    assert _listed("bos", {"bos_token_id": given}) == read
