"""Gemma 1: weights 1 + w, an embedding times √d; and what Gemma 2 and 3 have in common with it."""

import math
from dataclasses import replace
from typing import Any

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    ACTIVATIONS,
    LARGEST_HEAD,
    Configs,
    Family,
    families,
    model_of,
    norm_of,
    windows,
)
from normlab.pretrained.families.shared_names import GGUF_NAMES, LLAMA
from normlab.pretrained.keys import Keys


def activation(c: Keys) -> str:
    """By its older key and `gelu` the family means the approximation by tanh."""
    key = "hidden_act" if c.get("hidden_activation") is None else "hidden_activation"
    act = c.word(key, ACTIVATIONS)
    if key == "hidden_act" and act == "gelu":
        act = "gelu_pytorch_tanh"
    return ACTIVATIONS[act]


def stem(c: Keys) -> dict[str, Any]:
    """What all three have."""
    c.require("attention_bias", False)
    c.require("use_bidirectional_attention", False)
    return {
        "activation": activation(c),
        "tied": c.flag("tie_word_embeddings", True),
        "embed_factor": math.sqrt(c.count("hidden_size")),
    }


def later(
    c: Keys, every: int, softcaps: tuple[float | None, float | None] = (None, None)
) -> dict[str, Any]:
    """What Gemma 2 and 3 have; a soft cap of null or 0 is none, `softcaps` if unsaid."""
    return {
        **stem(c),
        "attention_scale": c.number("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": _softcap(c, "attn_logit_softcapping", softcaps[0]),
        "logit_softcap": _softcap(c, "final_logit_softcapping", softcaps[1]),
        **windows(c, every),
    }


def _softcap(c: Keys, key: str, unsaid: float | None) -> float | None:
    return c.number(key, 0, zero=True) or None if key in c.values else unsaid


def read(c: Keys) -> Configs:
    """RMSNorm before each branch."""
    model = model_of(c, c.count("head_dim", 256, most=LARGEST_HEAD), **stem(c))
    return Configs(model, norm_of(c), PlacementConfig("pre"), c.count("vocab_size"))


families.register("gemma")(
    Family("GemmaForCausalLM", read, replace(LLAMA, gain_offset=1.0), GGUF_NAMES)
)
