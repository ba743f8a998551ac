"""OLMo 3: OLMo 2 whose layers, but for each fourth, attend to a window."""

from normlab.pretrained.families.base import (
    Configs,
    Family,
    families,
    head_size,
    model_of,
    norm_of,
    windows,
)
from normlab.pretrained.families.olmo2 import PLACEMENT
from normlab.pretrained.families.shared_names import LLAMA
from normlab.pretrained.keys import Keys


def read(c: Keys) -> Configs:
    """Rotary positions are scaled, where they are, in global layers only."""
    c.require("attention_bias", False)
    local = windows(c, unsaid=4)
    model = model_of(c, head_size(c), 500_000.0, **local)
    if local and model.rope_divisors:
        local["local_rope_theta"] = model.rope_theta
        model = model_of(c, head_size(c), 500_000.0, **local)
    return Configs(model, norm_of(c), PLACEMENT, c.count("vocab_size"))


families.register("olmo3")(Family("Olmo3ForCausalLM", read, LLAMA))
