"""Qwen 2 and 2.5: Llama with biases on queries, keys and values."""

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    Configs,
    Family,
    families,
    head_size,
    model_of,
    norm_of,
)
from normlab.pretrained.families.shared_names import GGUF_NAMES, LLAMA
from normlab.pretrained.keys import Keys


def read(c: Keys) -> Configs:
    """Without sliding windows."""
    c.require("use_sliding_window", False)
    model = model_of(c, head_size(c), qkv_bias=True)
    return Configs(model, norm_of(c), PlacementConfig("pre"), c.count("vocab_size"))


families.register("qwen2")(Family("Qwen2ForCausalLM", read, LLAMA, GGUF_NAMES))
