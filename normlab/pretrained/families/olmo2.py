"""OLMo 2: a norm after each branch, and on queries and keys over all heads."""

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

PLACEMENT = PlacementConfig("reordered", norm_qk=True, norm_qk_full=True)


def read(c: Keys) -> Configs:
    """Without windows, which OLMo 3 has, in GGUF of the same architecture."""
    c.require("attention_bias", False)
    c.require("sliding_window", None, 0)
    return Configs(model_of(c, head_size(c)), norm_of(c), PLACEMENT, c.count("vocab_size"))


families.register("olmo2")(Family("Olmo2ForCausalLM", read, LLAMA, GGUF_NAMES))
