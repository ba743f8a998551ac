"""Loading: the right weights in the right places, and nothing half-loaded."""

import json
import tracemalloc
from importlib import import_module

import jax
import numpy as np
import pytest

from normlab import pretrained
from normlab.pretrained.gguf import GGUF
from normlab.pretrained.huggingface import Safetensors
from normlab.registry import UnknownNameError
from tests.support import small_checkpoints
from tests.support.small_checkpoints import (
    BERT,
    CONFIGS,
    HEAD,
    HEADS,
    KV,
    LAYERS,
    VOCAB,
    log_probs,
    tensors,
    write_folder,
    write_gguf,
)

loading = import_module("normlab.pretrained.load")  # the module: the package's `load` hides it
TOKENS = np.random.default_rng(1).integers(0, VOCAB, (2, 12))


ALL = {**CONFIGS, "bert": BERT}


def write(family, folder, **changes):
    config = {**ALL[family], **changes}
    return write_folder(folder, config, tensors(family))


def reference(tokens):
    """Llama's forward pass in float64 NumPy, from its papers; log-probabilities."""
    w = {k: v.astype(np.float64) for k, v in tensors("llama").items()}
    length, theta = tokens.shape[1], CONFIGS["llama"]["rope_theta"]
    angle = np.arange(length)[:, None] * theta ** (-2 * np.arange(HEAD // 2) / HEAD)
    turn = np.exp(1j * angle)[:, None, :]

    def norm(x, gain):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain

    def rotary(x):
        z = (x[..., : HEAD // 2] + 1j * x[..., HEAD // 2 :]) * turn
        return np.concatenate([z.real, z.imag], -1)

    def attention(x, layer):
        q, k, v = (
            (x @ w[f"{layer}self_attn.{part}_proj.weight"].T).reshape(length, -1, HEAD)
            for part in "qkv"
        )
        q, k = rotary(q), rotary(k)
        k, v = (np.repeat(t, HEADS // KV, axis=1) for t in (k, v))
        scores = np.einsum("qhk,shk->hqs", q, k) / np.sqrt(HEAD)
        scores = np.where(np.tril(np.ones((length, length))) > 0, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        heads = np.einsum("hqs,shk->qhk", weights, v).reshape(length, -1)
        return heads @ w[f"{layer}self_attn.o_proj.weight"].T

    def mlp(x, layer):
        gate = x @ w[f"{layer}mlp.gate_proj.weight"].T
        up = x @ w[f"{layer}mlp.up_proj.weight"].T
        return (gate / (1 + np.exp(-gate)) * up) @ w[f"{layer}mlp.down_proj.weight"].T

    def logits(row):
        x = w["model.embed_tokens.weight"][row]
        for i in range(LAYERS):
            layer = f"model.layers.{i}."
            x = x + attention(norm(x, w[f"{layer}input_layernorm.weight"]), layer)
            x = x + mlp(norm(x, w[f"{layer}post_attention_layernorm.weight"]), layer)
        return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T

    y = np.stack([logits(row) for row in tokens])
    y -= y.max(-1, keepdims=True)
    return y - np.log(np.exp(y).sum(-1, keepdims=True))


def test_llama_is_the_reference_in_float64(tmp_path):
    lm = pretrained.load(write("llama", tmp_path / "m"))
    np.testing.assert_allclose(log_probs(lm, TOKENS), reference(TOKENS), rtol=0, atol=2e-5)
    assert lm.name == "m"


@pytest.mark.parametrize("family", CONFIGS)
def test_a_gguf_file_is_the_folder_it_was_made_of(family, tmp_path):
    folder = write(
        family, tmp_path / "m", tie_word_embeddings=family in ("gpt2", "gemma2", "gemma3")
    )
    if family == "gemma2":  # GGUF doesn't say Gemma 2's activation or factor: they are fixed
        assert CONFIGS["gemma2"]["query_pre_attn_scalar"] == HEAD
    file = write_gguf(tmp_path / "m.gguf", family, CONFIGS[family], tensors(family))
    a, b = pretrained.load(folder), pretrained.load(file)
    ours, theirs = log_probs(a, TOKENS), log_probs(b, TOKENS)
    assert ours.std() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert a.facts["config"]["placement"] == b.facts["config"]["placement"]


def test_a_tied_folder_may_hold_its_head_twice(tmp_path):
    weights = tensors("llama")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    twice = write_folder(tmp_path / "a", {**CONFIGS["llama"], "tie_word_embeddings": True}, weights)
    lm = pretrained.load(twice)
    assert lm.model.head is None
    assert not np.allclose(log_probs(lm, TOKENS), reference(TOKENS), atol=1e-2)


def test_names_may_lack_their_prefix(tmp_path):
    bare = {k.removeprefix("transformer."): v for k, v in tensors("gpt2").items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)  # the mask, in old files
    a = pretrained.load(write_folder(tmp_path / "bare", CONFIGS["gpt2"], bare))
    b = pretrained.load(write("gpt2", tmp_path / "full"))
    np.testing.assert_array_equal(log_probs(a, TOKENS), log_probs(b, TOKENS))


def test_a_head_of_gpt2_is_stored_as_pytorch_does(tmp_path):
    """The one map of a GPT-2 directory that is [out, in]."""
    weights = tensors("gpt2")
    weights["lm_head.weight"] = np.random.default_rng(2).standard_normal((VOCAB, 24), np.float32)
    untied = {**CONFIGS["gpt2"], "tie_word_embeddings": False}
    a = pretrained.load(write_folder(tmp_path / "m", untied, weights))
    b = pretrained.load(write_gguf(tmp_path / "m.gguf", "gpt2", CONFIGS["gpt2"], weights))
    assert a.model.head is not None
    np.testing.assert_array_equal(a.model.head.kernel[...], weights["lm_head.weight"].T)
    np.testing.assert_array_equal(log_probs(a, TOKENS), log_probs(b, TOKENS))


@pytest.mark.parametrize("head", ["classifier", "qa_outputs", "cls.predictions"])
def test_what_stands_on_an_encoder_is_left(head, tmp_path):
    weights = {**tensors("bert"), f"{head}.bias": np.zeros(2, np.float32)}
    assert pretrained.load(write_folder(tmp_path / "m", BERT, weights)).model.head is None


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_of_a_gemma3_that_sees_the_text_model_is_read(prefix, tmp_path):
    plain = tensors("gemma3")
    seen = {name.replace("model.", prefix, 1): value for name, value in plain.items()}
    part = "model." if prefix.startswith("model.") else ""
    for name in ("vision_tower.x.weight", "multi_modal_projector.mm_soft_emb_norm.weight"):
        seen[part + name] = np.ones(3, np.float32)
    config = {"model_type": "gemma3", "text_config": CONFIGS["gemma3"]}
    a = pretrained.load(write_folder(tmp_path / "sees", config, seen))
    b = pretrained.load(write("gemma3", tmp_path / "plain"))
    np.testing.assert_array_equal(log_probs(a, TOKENS), log_probs(b, TOKENS))


def test_bert_norms_may_have_their_old_names(tmp_path):
    new = tensors("bert")
    spelled = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {k.replace(e := ".".join(k.split(".")[-2:]), spelled.get(e, e)): new[k] for k in new}
    assert sum("gamma" in name for name in old) == 1 + 2 * LAYERS
    a = pretrained.load(write_folder(tmp_path / "old", BERT, old))
    b = pretrained.load(write("bert", tmp_path / "new"))
    np.testing.assert_array_equal(log_probs(a, TOKENS), log_probs(b, TOKENS))


def test_describe_reads_no_weight(tmp_path, monkeypatch):
    specs = [
        write("llama", tmp_path / "m"),
        write_gguf(tmp_path / "m.gguf", "llama", CONFIGS["llama"], tensors("llama")),
    ]
    for source in (Safetensors, GGUF):
        monkeypatch.setattr(source, "read", lambda *_: pytest.fail("a weight was read"))
    for spec in specs:
        found = pretrained.describe(spec)
        assert found.configs.model.max_length == 64
        assert found.configs.placement.type == "pre"
        assert found.tokenizer().vocab_size in (256, 257)


def breaks(tmp_path, change, family="llama", **config):
    """The message when a changed checkpoint is loaded, and that no weight was read for it."""
    weights = tensors(family)
    change(weights)
    spec = write_folder(tmp_path / "m", {**ALL[family], **config}, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Safetensors, "read", lambda *_: pytest.fail("a weight was read"))
        with pytest.raises(pretrained.CheckpointError) as caught:
            pretrained.load(spec)
    return str(caught.value)


def test_a_missing_tensor(tmp_path):
    message = breaks(tmp_path, lambda w: w.pop("model.layers.1.mlp.up_proj.weight"))
    assert "lacks the tensor layers.1.mlp.up_proj.weight" in message


def test_an_unexpected_tensor(tmp_path):
    def add(weights):
        weights["model.layers.1.self_attn.q_proj.bias"] = np.zeros(HEADS * HEAD, np.float32)

    message = breaks(tmp_path, add)
    assert "holds model.layers.1.self_attn.q_proj.bias, which a llama" in message


def test_more_layers_than_the_config_says(tmp_path):
    message = breaks(tmp_path, lambda w: None, num_hidden_layers=2)
    assert "holds model.layers.2." in message
    assert "and 8 more" in message


def test_a_wrong_shape(tmp_path):
    def transpose(weights):
        name = "model.layers.0.mlp.up_proj.weight"
        weights[name] = np.ascontiguousarray(weights[name].T)

    message = breaks(tmp_path, transpose)
    assert "up_proj.weight has shape (24, 40), its config says (40, 24)" in message


TYPES = "bert.embeddings.token_type_embeddings.weight"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (None, "lacks the tensor embeddings.token_type_embeddings.weight"),
        ((2, 1), "has shape (2, 1), expected 24 columns and a row or more"),
        ((0, 24), "has shape (0, 24), expected"),
        ((24,), "has shape (24,), expected"),
    ],
)
def test_what_is_added_to_bert_positions(shape, message, tmp_path):
    def change(weights):
        del weights[TYPES]
        if shape is not None:
            weights[TYPES] = np.zeros(shape, np.float32)

    assert message in breaks(tmp_path, change, "bert")


def test_weights_that_are_no_floats(tmp_path):
    def round_(weights):
        name = "model.layers.0.mlp.up_proj.weight"
        weights[name] = weights[name].astype(np.int8)

    assert "up_proj.weight is of type I8: expected plain floats" in breaks(tmp_path, round_)


def test_a_tokenizer_of_another_model(tmp_path):
    message = breaks(
        tmp_path,
        lambda w: w.update({"model.embed_tokens.weight": np.zeros((9, 24), np.float32)}),
        vocab_size=9,
    )
    assert "the tokenizer has ids up to 255, the embedding 9 rows" in message


def test_ids_that_begin_a_text_have_rows(tmp_path):
    spec = write("llama", tmp_path / "m", bos_token_id=VOCAB)
    with pytest.raises(pretrained.CheckpointError, match=f"ids up to {VOCAB}, the embedding"):
        pretrained.describe(spec).tokenizer()


@pytest.mark.parametrize("special", [True, False])
def test_only_special_tokens_may_lack_a_row(special, tmp_path):
    from tokenizers import AddedToken, Tokenizer

    spec = write("llama", tmp_path / "m", vocab_size=256)
    tokenizer = Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<image>", special=special)])
    tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    if special:
        assert pretrained.describe(spec).tokenizer().vocab_size == 256
    else:
        with pytest.raises(pretrained.CheckpointError, match="ids up to 256, the embedding 256"):
            pretrained.describe(spec).tokenizer()


def test_specs_that_name_nothing(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2-135m'"):
        pretrained.describe("smollm2-135")
    with pytest.raises(pretrained.CheckpointError, match="there is no such directory"):
        pretrained.describe(f"hf:{tmp_path}/nothing")
    with pytest.raises(pretrained.CheckpointError, match="there is no such file"):
        pretrained.describe(f"gguf:{tmp_path}/nothing.gguf")
    with pytest.raises(pretrained.CheckpointError, match=r"has no config\.json"):
        pretrained.describe(f"hf:{tmp_path}")


def test_an_unknown_architecture_names_the_nearest(tmp_path):
    spec = write("llama", tmp_path / "m", model_type="olmo3")
    with pytest.raises(pretrained.CheckpointError, match="unknown architecture 'olmo3'.*'olmo2'"):
        pretrained.describe(spec)


def test_facts_say_what_was_loaded(tmp_path):
    facts = pretrained.load(write("gemma3", tmp_path / "m")).facts
    assert facts["family"] == "gemma3_text"
    assert list(facts["sha256"]) == ["model.safetensors"]
    assert "1 + w" in facts["gain"]
    assert facts["config"]["model"]["width"] == 24
    json.dumps(facts)


@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_the_host_holds_the_model_and_one_tensor(form, tmp_path, monkeypatch):
    """NumPy's memory beside what is on the device, as it is read, laid out and copied."""
    monkeypatch.setattr(small_checkpoints, "VOCAB", 40_000)  # embedding and head: 3.7 MiB each
    weights, config = tensors("llama"), {**CONFIGS["llama"], "vocab_size": 40_000}
    if form == "gguf":
        spec = write_gguf(tmp_path / "m.gguf", "llama", config, weights)
    else:
        spec = write_folder(tmp_path / "m", config, weights)
    sizes = [w.nbytes for w in weights.values()]
    put, on_device, peaks = loading.put, [], []

    def watched(path, x):
        peaks.append(sum(on_device) + tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        copied = jax.block_until_ready(put(path, x))
        taken_over = copied.unsafe_buffer_pointer() == x.ctypes.data  # where it is aligned
        on_device.append(0 if taken_over else x.nbytes)
        peaks.append(sum(on_device) + tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        return copied

    monkeypatch.setattr(loading, "put", watched)
    checkpoint = pretrained.describe(spec)
    del weights
    tracemalloc.start()
    try:
        checkpoint.load()
    finally:
        tracemalloc.stop()
    assert len(peaks) == 2 * len(sizes)
    python = 2**20  # objects, the tokenizer's among them
    assert sum(sizes) < max(peaks) < sum(sizes) + max(sizes) + python


@pytest.mark.system
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_real_model_knows_the_capital_of_france(name):
    try:
        lm = pretrained.load(name)
    except pretrained.CheckpointError as error:
        pytest.skip(str(error))
    bos = [] if lm.tokenizer.bos is None else [lm.tokenizer.bos]
    ids = [*bos, *lm.tokenizer.encode("The capital of France is").ids]
    best = log_probs(lm, np.array([ids]))[0, -1].argsort()[::-1][:3]
    assert " Paris" in [lm.tokenizer.decode([i]) for i in best]
