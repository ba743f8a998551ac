"""A model in the words of config.json: one dictionary in the words of every family at once.

A family reads of it what it has words for. What it then describes is compared with the model
(`fit`), so that no word here is believed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from normlab.model import ModelConfig
from normlab.pretrained.families.rope import FULL, SLIDING, divisors
from normlab.pretrained.keys import Keys

ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}
"""What config.json calls a non-linearity that has another name here."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""As Llama 3.1 and 3.2 have it; a GGUF file holds the divisors that follow alone."""


BY_KIND = ("gemma3_text", "olmo3")
"""Families whose code keeps rotary settings by kind of layer, and misreads them spelled as one."""


class Asked(Mapping[str, Any]):
    """Words, and which of them somebody has asked for."""

    def __init__(self, words: Mapping[str, Any]):
        self.words = words
        self.keys_asked: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_asked.add(key)
        return self.words[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.words)

    def __len__(self) -> int:
        return len(self.words)

    def answered(self) -> dict[str, Any]:
        """Those that were asked for and are there, in their order."""
        return {key: value for key, value in self.words.items() if key in self.keys_asked}


def words(
    c: ModelConfig, vocab_size: int, eps: float, *, parallel: bool, post: bool
) -> dict[str, Any]:
    """Everything that a config.json may say of a model.

    Args:
        c: its size and shape.
        vocab_size: rows of the embedding.
        eps: ε of its norms.
        parallel: whether both branches read the rows that entered the block.
        post: whether norms stand behind the sums.
    """
    act = ACTIVATIONS.get(c.activation, c.activation)
    scale = c.attention_scale or c.head_size**-0.5
    biased = {"attention": c.bias, "queries": c.bias if c.qkv_bias is None else c.qkv_bias}
    return {
        **dict.fromkeys(("vocab_size",), vocab_size),
        **dict.fromkeys(("hidden_size", "n_embd"), c.width),
        **dict.fromkeys(("num_hidden_layers", "n_layer"), c.layers),
        **dict.fromkeys(("num_attention_heads", "n_head"), c.heads),
        "num_key_value_heads": c.kv,
        "head_dim": c.head_size,
        **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), c.hidden_size),
        **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), act),
        **dict.fromkeys(("max_position_embeddings", "n_positions"), c.max_length),
        **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), eps),
        "tie_word_embeddings": c.tied,
        "attention_bias": any(biased.values()),
        "mlp_bias": c.bias if c.mlp_bias is None else c.mlp_bias,
        "use_parallel_residual": parallel,
        "do_layer_norm_before": not post,
        "word_embed_proj_dim": c.embed_width or c.width,
        "embedding_multiplier": c.embed_factor,
        "residual_multiplier": c.branch_factor,
        "attention_multiplier": scale,
        "logits_scaling": 1.0 / c.logit_factor,
        "query_pre_attn_scalar": _whole(scale**-2),
        "attn_logit_softcapping": c.attention_softcap,
        "final_logit_softcapping": c.logit_softcap,
        **_windows(c),
        **_rope(c),
    }


def _whole(x: float) -> float | int:
    """A number without a rest that float arithmetic left: 256, not 255.99999999999997."""
    near = round(x)
    return near if near and abs(x - near) < 1e-9 * near else x


def _windows(c: ModelConfig) -> dict[str, Any]:
    kinds = [SLIDING if c.local(i) else FULL for i in range(c.layers)]
    return {
        "use_sliding_window": False,  # Qwen's, which has none here
        "sliding_window": c.window,
        "layer_types": kinds,
    }


def _rope(c: ModelConfig) -> dict[str, Any]:
    """The older spellings, which every version of `transformers` reads, and one by kind."""
    if c.positions != "rotary":
        return {}
    share = 1.0 if c.rope_dim is None else c.rope_dim / c.head_size
    local = c.rope_theta if c.local_rope_theta is None else c.local_rope_theta
    scaling = _scaling(c)
    kinds = {
        FULL: {"rope_type": "default", "rope_theta": c.rope_theta, **(scaling or {})},
        SLIDING: {"rope_type": "default", "rope_theta": local},
    }
    return {
        **dict.fromkeys(("rope_theta", "rotary_emb_base"), c.rope_theta),
        **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), share),
        "rope_local_base_freq": local,
        "rope_scaling": scaling,
        "rope_parameters": kinds,
    }


def _scaling(c: ModelConfig) -> dict[str, Any] | None:
    """What stretches the frequencies, by the type that gives these divisors; else themselves."""
    turned = c.head_size if c.rope_dim is None else c.rope_dim
    if c.rope_factor != 1.0:
        given = c.rope_divisors or (1.0,) * (turned // 2)
        return {"rope_type": "listed", "divisors": [*given], "attention_factor": c.rope_factor}
    given = c.rope_divisors
    if not given:
        return None
    largest = max(given)
    for said in ({"rope_type": "linear"}, {"rope_type": "llama3", **LLAMA3}):
        said = {**said, "factor": largest}
        made = divisors(Keys({**said, "rope_theta": c.rope_theta}, "a candidate"), turned)
        if np.allclose(made, given, rtol=1e-6):  # a GGUF file has them in float32
            return said
    return {"rope_type": "listed", "divisors": [*given]}
