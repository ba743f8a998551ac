"""Layouts: each stored form undone, whatever the shapes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from normlab.model import ModelConfig
from normlab.pretrained.families import families
from normlab.pretrained.families.shared_names import GEMMA, GGUF_LLAMA, GGUF_NAMES, LLAMA
from normlab.pretrained.names import Part, Stored

CONFIG = ModelConfig(heads=4, kv_heads=2, width=32)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_rotary_pairs_are_put_in_halves(heads, half, inputs):
    ours = np.arange(heads * half * 2 * inputs, dtype=np.float32).reshape(-1, inputs)
    # llama.cpp: row (head, half h, pair j) of Hugging Face's goes to (head, j, h).
    stored = np.empty_like(ours)
    for head in range(heads):
        for j in range(half):
            for h in range(2):
                stored[head * 2 * half + 2 * j + h] = ours[head * 2 * half + h * half + j]
    made = Stored("q", transposed=True, heads=heads)
    np.testing.assert_array_equal(made.ours(stored), ours.T)
    assert made.shape(ours.T.shape) == stored.shape
    bias = Stored("q", heads=heads)
    np.testing.assert_array_equal(bias.ours(stored[:, 0].copy()), ours[:, 0])


@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 4), min_size=2, max_size=3),
    st.integers(1, 3),
    st.booleans(),
)
def test_parts_are_put_apart(inputs, sizes, groups, transposed):
    """Of each group the parts follow one another: heads of GPT-NeoX, or one group of all."""
    rng, sizes = np.random.default_rng(0), [size * groups for size in sizes]
    parts = [rng.standard_normal((inputs, size)).astype(np.float32) for size in sizes]
    by_group = [np.split(part, groups, axis=1) for part in parts]
    whole = np.concatenate([part[g] for g in range(groups) for part in by_group], axis=1)
    for k, size in enumerate(sizes):
        part = Part(sum(sizes[:k]), size, sum(sizes), groups)
        made = Stored("qkv", transposed=transposed, part=part)
        stored = whole.T if transposed else whole
        np.testing.assert_array_equal(made.ours(stored), parts[k])
        assert made.shape((inputs, size)) == stored.shape


def test_names_of_each_format():
    def stored(names, path):
        return names.stored(path, CONFIG)

    key = "blocks.2.attention.branch.key.kernel"
    assert stored(LLAMA, key) == Stored("layers.2.self_attn.k_proj.weight", transposed=True)
    assert stored(GGUF_NAMES, key) == Stored("blk.2.attn_k.weight", transposed=True)
    assert stored(GGUF_LLAMA, key) == Stored("blk.2.attn_k.weight", transposed=True, heads=2)
    part = Part(32, 16, 64)
    gpt2 = families["gpt2"].folder
    assert stored(gpt2, key) == Stored("h.2.attn.c_attn.weight", part=part)
    bias = stored(gpt2, key.replace("kernel", "bias"))
    assert bias == Stored("h.2.attn.c_attn.bias", part=part)
    weight = "blocks.0.mlp.norm_in.weight"
    assert stored(LLAMA, weight) == Stored("layers.0.post_attention_layernorm.weight")
    assert stored(GEMMA, weight) == Stored("layers.0.pre_feedforward_layernorm.weight", offset=1.0)
    assert stored(GEMMA, "embed.embedding") == Stored("embed_tokens.weight")


def test_an_offset_is_added_in_float32():
    weight = Stored("w", offset=1.0).ours(np.array([0.5, -1.0], np.float32))
    assert weight.dtype == np.float32
    assert weight.tolist() == [1.5, 0.0]
