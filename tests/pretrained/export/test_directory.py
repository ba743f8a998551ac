"""What a GGUF file says of a source that isn't one."""

import json

import pytest

from normlab.pretrained import describe
from normlab.pretrained.export.directory import gguf_metadata
from tests.support.byte_level import bpe
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "m", CONFIGS["llama"] | {"eos_token_id": 7}, tensors("llama"))
    bpe("smollm", 2).save(str(tmp_path / "m" / "tokenizer.json"))
    return tmp_path / "m"


def said(folder):
    source = describe(f"hf:{folder}")
    return {key: value.value for key, value in gguf_metadata(source.tokenizer(), source).items()}


def test_name_and_tokenizer_of_a_folder(folder):
    found = said(folder)
    assert found["general.name"] == "m"
    assert found["tokenizer.ggml.pre"] == "smollm"
    assert found["tokenizer.ggml.eos_token_id"] == 7
    assert len(found["tokenizer.ggml.tokens"]) == CONFIGS["llama"]["vocab_size"]
    assert "tokenizer.chat_template" not in found


def test_how_a_conversation_is_written_comes_from_either_place(folder):
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({"chat_template": "{{ one }}"}))
    assert said(folder)["tokenizer.chat_template"] == "{{ one }}"
    (folder / "chat_template.jinja").write_text("{{ two }}")
    assert said(folder)["tokenizer.chat_template"] == "{{ two }}"
