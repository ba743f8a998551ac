"""Llama 1 to 3, and what took their config over (SmolLM2, TinyLlama, …)."""

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    Configs,
    Family,
    families,
    head_size,
    model_of,
    norm_of,
)
from normlab.pretrained.families.shared_names import GGUF_LLAMA, LLAMA
from normlab.pretrained.keys import Keys


def read(c: Keys) -> Configs:
    """RMSNorm before each branch, a gated MLP, rotary positions."""
    biases = {"bias": c.flag("attention_bias", False), "mlp_bias": c.flag("mlp_bias", False)}
    model = model_of(c, head_size(c), **biases)
    return Configs(model, norm_of(c), PlacementConfig("pre"), c.count("vocab_size"))


families.register("llama")(Family("LlamaForCausalLM", read, LLAMA, GGUF_LLAMA))
