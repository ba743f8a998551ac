"""Granite 3: Llama with constant factors on embedding, branches, scores and logits."""

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
    """Logits are divided by `logits_scaling`."""
    model = model_of(
        c,
        head_size(c),
        bias=c.flag("attention_bias", False),
        mlp_bias=c.flag("mlp_bias", False),
        embed_factor=c.number("embedding_multiplier", 1.0),
        branch_factor=c.number("residual_multiplier", 1.0),
        attention_scale=c.number("attention_multiplier", 1.0),
        logit_factor=1.0 / c.number("logits_scaling", 1.0),
    )
    return Configs(model, norm_of(c), PlacementConfig("pre"), c.count("vocab_size"))


families.register("granite")(Family("GraniteForCausalLM", read, LLAMA, GGUF_LLAMA))
