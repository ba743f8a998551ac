"""Tokenizers that we write: read again, they give the ids that the model was trained on."""

import json

import numpy as np
import pytest

from normlab.data.tokenizer import BPETokenizer, WordTokenizer
from normlab.pretrained.export.tokenizer import copy_tokenizer, write_tokenizer
from normlab.pretrained.tokenizer import from_folder, from_metadata
from tests.support.small_checkpoints import letters

TEXT = "a line of words , and\nanother , naïve one .\n\n = 1,234 = \n"
GGUF = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*letters(), "ab", "<s>"],
    "tokenizer.ggml.token_type": [1] * 257 + [3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 257,
    "tokenizer.ggml.add_bos_token": True,
}
MADE = {
    "words": lambda: WordTokenizer.train(TEXT),
    "bpe": lambda: BPETokenizer.train(TEXT * 3, 280),
    "gguf": lambda: from_metadata(GGUF, "gguf"),
}


@pytest.mark.parametrize("kind", MADE)
def test_the_same_ids_and_the_same_beginning(kind, tmp_path):
    own = MADE[kind]()
    write_tokenizer(own, tmp_path, 64, {"bos_token_id": own.bos, "eos_token_id": None})
    again = from_folder(tmp_path, {"vocab_size": own.vocab_size}, "again")
    text = f"{TEXT}unheard-of {TEXT}"
    np.testing.assert_array_equal(again.encode(text).ids, own.encode(text).ids)
    assert again.bos == own.bos
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert said.get("bos_token") == {"gguf": "<s>"}.get(kind)


def test_files_of_a_directory_are_copied_as_they_are(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "model.safetensors"):
        (tmp_path / "from" / name).write_text(name)
    assert copy_tokenizer(tmp_path / "from", tmp_path / "to") == [
        "tokenizer.json",
        "chat_template.jinja",
    ]
    assert (tmp_path / "to" / "chat_template.jinja").read_text() == "chat_template.jinja"


@pytest.mark.extended
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", MADE)
def test_transformers_give_the_same_ids(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    own = MADE[kind]()
    write_tokenizer(own, tmp_path, 64, {"bos_token_id": own.bos, "eos_token_id": None})
    (tmp_path / "config.json").write_text('{"model_type": "gemma3_text"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    begins = [] if own.bos is None else [own.bos]
    assert theirs(TEXT)["input_ids"] == [*begins, *own.encode(TEXT).ids]
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == own.encode(TEXT).ids.tolist()
