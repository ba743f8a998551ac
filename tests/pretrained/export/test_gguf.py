"""GGUF files that are written, against llama.cpp's rules of conversion and what is read again."""

from dataclasses import replace

import gguf as package
import numpy as np
import pytest
from flax import nnx

from normlab import pretrained
from normlab.data.tokenizer import BPETokenizer, PretrainedTokenizer, WordTokenizer
from normlab.model import Transformer
from normlab.pretrained.export import gguf
from normlab.pretrained.export.gguf import Value
from normlab.pretrained.export.gguf_tokenizer import tokenizer_words
from normlab.pretrained.gguf import GGUF
from normlab.pretrained.tokenizer import from_metadata
from tests.conftest import same_trees, tiny_model
from tests.support.byte_level import bpe
from tests.support.family_golden import tensors
from tests.support.gguf_files import CASES, GOLDEN, TEXT, exported, kept_case
from tests.support.small_checkpoints import gguf_tensor, head_size


def same_ids(a, b, text=TEXT):
    return [*a.encode(text).ids] == [*b.encode(text).ids]


@pytest.mark.system
@pytest.mark.parametrize("case", CASES)
def test_a_file_is_read_as_the_model_that_was_written(case, tmp_path):
    """And its tensors are those of llama.cpp's converter, by its own names."""
    kept = kept_case(case)
    arch = gguf.architecture(kept["config"]["model_type"])
    lm, path = exported(tmp_path, kept, "float32")
    found, file, head = pretrained.load(f"gguf:{path}"), GGUF(path), head_size(kept["config"])
    assert same_trees(nnx.state(found.model), nnx.state(lm.model))
    weights = tensors(kept["config"], kept["shapes"])
    expected = dict(gguf_tensor(arch, name, value, head) for name, value in weights.items())
    if case == "llama-3":
        expected["rope_freqs.weight"] = np.float32(lm.model.config.rope_divisors)
    assert file.shapes.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(file.read(name), value, err_msg=name)
    assert same_ids(found.tokenizer, lm.tokenizer)
    assert found.tokenizer.prefix == lm.tokenizer.prefix


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2"])
def test_a_tokenizer_gives_the_same_ids(kind):
    own = PretrainedTokenizer(bpe(kind).to_str(), "t", 3 if kind == "llama-bpe" else None, 3)
    told = tokenizer_words(own, 300, {"eos_token_id": 4})
    assert told["pre"] == kind
    assert len(told["tokens"]) == len(told["token_type"]) == 300
    assert told["token_type"][-1] == 5
    assert told["tokens"][-1] == "[PAD299]"
    found = from_metadata({f"tokenizer.ggml.{key}": value for key, value in told.items()}, "t")
    assert same_ids(found, own)
    assert len(set(own.encode(TEXT).ids) & {own.vocab_size - 2, own.vocab_size - 1}) == 2
    assert (found.bos, found.prefix) == (own.bos, own.prefix)


@pytest.mark.parametrize(("given", "kept"), [(4, 4), ([5, 4], 5), (-1, None), (None, None)])
def test_the_end_of_a_text_is_the_first_that_is_named(given, kept):
    own = PretrainedTokenizer(bpe("gpt-2").to_str(), "t")
    told = tokenizer_words(own, 300, {"eos_token_id": given, "pad_token_id": given})
    assert told.get("eos_token_id") == told.get("padding_token_id") == kept
    assert "bos_token_id" not in told


def sentencepiece():
    from tokenizers import Tokenizer, models, normalizers

    made = Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    return PretrainedTokenizer(made.to_str(), "t")


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (sentencepiece(), "tokenizer t: BPE behind nothing: expected byte-level BPE that cuts"),
        (BPETokenizer.train("a b a b", 258), "BPE behind Split, ByteLevel: expected byte-level"),
        (WordTokenizer.train("a b"), "word-4: expected byte-level BPE; a GGUF file has no"),
    ],
)
def test_another_tokenizer_is_refused(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_words(tokenizer, 300, {})


def test_f16_is_rounded_once_and_vectors_are_not(tmp_path):
    lm, path = exported(tmp_path, GOLDEN["gpt2"], "float16")
    file, reader = GGUF(path), package.GGUFReader(path)
    gguf.write(tmp_path / "wide.gguf", lm.model, "gpt2", gguf.carried(file), "float32")
    wide = GGUF(tmp_path / "wide.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds.keys() == file.shapes.keys()
    for name, shape in file.shapes.items():
        whole, narrow = wide.read(name), file.read(name)
        vector = len(shape) == 1 or name == "position_embd.weight"
        assert kinds[name] == ("F32" if vector else "F16"), name
        expected = whole if vector else whole.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(narrow, expected, err_msg=name)
    assert file.metadata["general.file_type"] == 1
    assert wide.metadata["general.file_type"] == 0
    assert reader.fields["gpt2.block_count"].contents() == 3


@pytest.mark.system
def test_what_a_file_says_is_carried_over_and_changed_where_it_must(tmp_path):
    lm, path = exported(tmp_path, GOLDEN["llama"], "float16")
    source, key = GGUF(path), "llama.attention.layer_norm_rms_epsilon"
    of_that_file = {"quantize.imatrix.file": Value("x"), "general.alignment": Value(32)}
    own = {"general.name": Value("mine"), "x.list": Value([3, -1], (9, 11))}
    own["llama.block_count"] = Value(3, (10,))  # 64 bits wide, as it came
    told = gguf.carried(source) | own
    assert gguf.described(lm.model, "llama", told) == told
    gguf.write(tmp_path / "b.gguf", lm.model, "llama", told | of_that_file, "float32")
    found = GGUF(tmp_path / "b.gguf")
    expected = {"general.name": "mine", "x.list": [3, -1], "general.file_type": 0}
    expected |= {name: value.value for name, value in of_that_file.items()}
    assert found.metadata == source.metadata | expected
    assert (found.kinds["x.list"], found.kinds["llama.block_count"]) == ((9, 11), (10,))
    told = gguf.carried(found)
    assert not told.keys() & of_that_file.keys()
    model = Transformer(lm.model.config, replace(lm.model.norm, eps=0.25), lm.model.placement, 300)
    changed = gguf.described(model, "llama", told)
    assert {name for name in changed if changed[name] != told.get(name)} == {key}
    assert changed[key].value == 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_factor": 3.0}, "llama.cpp's llama can't say all of it: embed_factor = 1, not 3"),
        ({"logit_softcap": 3.0}, "logit_softcap = None, not 3; expected format=hf"),
        ({"window": 8}, "window = "),
    ],
)
def test_what_has_no_word_is_refused(change, message):
    model = tiny_model(**change)
    with pytest.raises(ValueError, match=message):
        gguf.described(model, "llama", {})


@pytest.mark.parametrize("case", ["gemma2", "gemma3_text"])
def test_a_factor_on_queries_that_goes_unsaid_is_refused(case, tmp_path):
    with pytest.raises(ValueError, match="all of it: attention_scale = 0.25, not 0.204124; exp"):
        exported(tmp_path, GOLDEN[case], "float32")


def test_a_family_that_llama_cpp_lacks_is_refused():
    with pytest.raises(ValueError, match="family 'opt': expected one that llama.cpp has, gemma, "):
        gguf.described(tiny_model(), "opt", {})


def test_a_weight_beyond_half_is_refused(tmp_path):
    model = tiny_model()
    model.blocks[0].mlp.branch.up.kernel[0, 0] = 7e4
    with pytest.raises(ValueError, match=r"blk.0.ffn_up.weight holds 7e\+04, and float16 ends at"):
        gguf.write(tmp_path / "m.gguf", model, "llama", {}, "float16")
