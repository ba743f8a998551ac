"""Qwen 3: a norm on each head's queries and keys, no biases."""

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    LARGEST_HEAD,
    Configs,
    Family,
    families,
    model_of,
    norm_of,
)
from normlab.pretrained.families.shared_names import GGUF_NAMES, LLAMA
from normlab.pretrained.keys import Keys


def read(c: Keys) -> Configs:
    """Without sliding windows."""
    c.require("use_sliding_window", False)
    c.require("attention_bias", False)
    model = model_of(c, c.count("head_dim", most=LARGEST_HEAD))
    return Configs(model, norm_of(c), PlacementConfig("pre", norm_qk=True), c.count("vocab_size"))


families.register("qwen3")(Family("Qwen3ForCausalLM", read, LLAMA, GGUF_NAMES))
