"""OLMo 1: LayerNorms without weight and bias."""

from dataclasses import replace

from normlab.config import build
from normlab.model import PlacementConfig
from normlab.norms import NormConfig
from normlab.pretrained.families.base import Configs, Family, families, head_size, model_of
from normlab.pretrained.families.shared_names import GGUF_LLAMA, LLAMA
from normlab.pretrained.keys import Keys

PLAIN = {"type": "layernorm", "eps": 1e-5, "use_weight": False, "bias": False}
"""The ε is a constant of its code."""


def read(c: Keys) -> Configs:
    """Without the clipping of queries, keys and values that some of them have."""
    c.require("clip_qkv", None)
    model = model_of(c, head_size(c), bias=c.flag("attention_bias", False), mlp_bias=False)
    norm = build(NormConfig, PLAIN, "norm.")
    return Configs(model, norm, PlacementConfig("pre"), c.count("vocab_size"))


families.register("olmo")(Family("OlmoForCausalLM", read, LLAMA, replace(GGUF_LLAMA, ignored="$^")))
