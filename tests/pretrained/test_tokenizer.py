"""Tokenizers of checkpoints: against the rules they come from, written out slowly."""

import itertools
import json
import logging
import math
from functools import cache
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.data import load_tokenizer
from normlab.pretrained import tokenizer as tokenizer_file
from normlab.pretrained.source import CheckpointError
from normlab.pretrained.tokenizer import from_folder, from_metadata, open_tokenizer
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


@pytest.mark.system
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
        (BPE | {"tokenizer.ggml.model": "gpt"}, "ggml of t: unknown model 'gpt'. Did .* 'gpt2'"),
        (kind_of_bpe("gpt2"), "ggml of t: unknown pre 'gpt2'. Did you mean 'gpt-2'"),
        (BPE | {"tokenizer.ggml.tokens": 3}, "expected tokens to be a list of str"),
        (BPE | {"tokenizer.ggml.tokens": [3]}, "expected tokens to be a list of str"),
        (BPE | {"tokenizer.ggml.merges": "a b"}, "expected merges to be a list of str"),
        (BPE | {"tokenizer.ggml.token_type": [1]}, "list of int, one for each of 261 tokens"),
        (BPE | {"tokenizer.ggml.token_type": [7] * 261}, "has token_type = 7: expected 0 to 6"),
        (BPE | {"tokenizer.ggml.add_bos_token": "no"}, "add_bos_token = 'no': expected true or"),
        (SPM | {"tokenizer.ggml.scores": [0.0]}, "scores to be a list of float, one for each of"),
        (SPM | {"tokenizer.ggml.scores": [math.nan] * 271}, "scores to be a list of float"),
        (SPM | {"tokenizer.ggml.add_space_prefix": 0}, "add_space_prefix = 0: expected true"),
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
    for content in (b'{"model": {"type": 3}}', b"\xff", b'{"a": 1, "a": 2}'):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json (can't be read|is no valid)"):
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
def test_an_id_of_minus_1_is_none(given, read, tmp_path):
    """It would read the embedding's last row."""
    write_tokenizer(tmp_path)
    assert from_folder(tmp_path, {"bos_token_id": given, "vocab_size": 256}, "t").prefix == read


NO_ID = [-2, 261, 2**31, True, 3.0, "3", "", {}, [3, 261], [[3]], [None]]


@pytest.mark.parametrize("wrong", NO_ID)
def test_what_is_no_id_is_refused_wherever_ids_are_named(wrong, tmp_path):
    """Used or not: above, below, of another type, one among several."""
    write_tokenizer(tmp_path)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        with pytest.raises(
            CheckpointError, match=rf"config\.json has {key} = .*: expected a token"
        ):
            from_folder(tmp_path, {key: wrong, "vocab_size": 261}, "t")
    for key in ("bos_token_id", "eos_token_id", "padding_token_id", "unknown_token_id"):
        with pytest.raises(CheckpointError, match=rf"ggml of t has {key} = .*: expected a token's"):
            from_metadata(BPE | {f"tokenizer.ggml.{key}": wrong}, "t")


def test_minus_1_in_a_gguf_files_unsigned_numbers_is_none():
    unsigned = {f"tokenizer.ggml.{k}_token_id": 2**32 - 1 for k in ("bos", "padding", "unknown")}
    assert from_metadata(BPE | unsigned, "t").prefix is None
    assert from_metadata(SPM | unsigned, "t").bos is None


# --- what the package does of its own


def changed(folder, **parts):
    """A directory's tokenizer whose definition has other parts; those of `model` one by one."""
    write_tokenizer(folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"] |= parts.pop("model", {})
    content |= parts
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_random_tokenizer_is_made_to_encode_alike_and_says_so(tmp_path, caplog):
    pair = {"vocab": {**{letter: i for i, letter in enumerate(letters())}, "ab": 256}}
    merged = pair | {"merges": [["a", "b"]]}
    changed(tmp_path, model=merged)
    plain = from_folder(tmp_path, {}, "t")
    assert (plain.note, plain.encode("ab" * 50).ids.tolist()) == ("", [256] * 50)
    changed(tmp_path, model=merged | {"dropout": 0.5})
    with caplog.at_level(logging.WARNING):
        made = from_folder(tmp_path, {}, "t")
    assert made.note == "BPE dropout = 0.5, switched off"
    assert made.note in caplog.text
    for _ in range(3):
        assert made.encode("ab" * 50).ids.tolist() == [256] * 50


PANICS = {
    "as it is read": {"model": {"continuing_subword_prefix": "abc"}, "of": "merges"},
    "as it encodes": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "at a template": {
        "post_processor": {
            "type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("case", PANICS)
def test_where_the_package_panics_the_file_is_refused(case, tmp_path):
    """Its PanicException is no Exception."""
    parts = {key: dict(part) for key, part in PANICS[case].items() if key != "of"}
    if "of" in PANICS[case]:
        parts["model"]["merges"] = [["a", "b"]]
        parts["model"]["vocab"] = {"a": 0, "b": 1, "ab": 2}
    changed(tmp_path, **parts)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json can't be read: "):
        from_folder(tmp_path, {}, "t")


def test_a_text_that_a_tokenizer_cannot_read_is_an_error_that_names_it(tmp_path):
    """An unknown word, for which this one has no token, comes up in the middle of a text."""
    changed(tmp_path, pre_tokenizer=None, model={"type": "WordPiece", "vocab": {"a": 0}} | {
        "unk_token": "?", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
    })  # fmt: skip
    made = from_folder(tmp_path, {}, "t")
    with pytest.raises(ValueError, match="the tokenizer of t can't read the text: .*UNK"):
        made.encode("b")


def test_a_tokenizer_by_itself_puts_nothing_before_a_text(tmp_path):
    with_template(tmp_path)
    folder = open_tokenizer(f"hf:{tmp_path}")
    file = open_tokenizer(str(tmp_path / "tokenizer.json"))
    assert folder.definition == file.definition
    assert (folder.bos, folder.prefix, file.name) == (None, None, "tokenizer")
    assert file.decode(file.encode("ab 12").ids) == "ab 12"
    for missing in (tmp_path / "no.json", f"hf:{tmp_path}/no", f"gguf:{tmp_path}/no"):
        with pytest.raises(CheckpointError, match="no"):
            open_tokenizer(str(missing))


def test_of_a_gguf_file_the_tokenizer_alone_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_file, "GGUF", lambda path: SimpleNamespace(metadata=BPE))
    made = open_tokenizer(f"gguf:{tmp_path}/small.gguf")
    assert (made.name, made.bos) == ("small", None)
    assert made.encode(" ab").ids.tolist() == from_metadata(BPE, "x").encode(" ab").ids.tolist()
