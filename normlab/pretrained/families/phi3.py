"""Phi 3 and 4 (mini): Llama whose maps are stored together, and whose layers may have a window."""

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    Configs,
    Family,
    families,
    head_size,
    model_of,
    norm_of,
    one_window,
)
from normlab.pretrained.families.shared_names import BUFFERS, GGUF_MODULES, LAYER, MODULES
from normlab.pretrained.families.shared_names import QKV as GGUF_QKV
from normlab.pretrained.keys import Keys
from normlab.pretrained.names import GATED, QKV, Names

NAMES = Names(
    {
        **MODULES,
        **dict.fromkeys(QKV, f"{LAYER}self_attn.qkv_proj"),
        **dict.fromkeys(GATED, f"{LAYER}mlp.gate_up_proj"),
    },
    prefixes=("model.",),
    prefix="model.",
    ignored=BUFFERS,
)

GGUF = Names({**GGUF_MODULES, **GGUF_QKV, "mlp.branch.gate": GGUF_MODULES["mlp.branch.up"]})


def read(c: Keys) -> Configs:
    """Without the two sets of rotary divisors of its long-context versions (`longrope`)."""
    c.require("attention_bias", False)
    model = model_of(c, head_size(c), partial=True, **one_window(c))
    return Configs(model, norm_of(c), PlacementConfig("pre"), c.count("vocab_size"))


families.register("phi3")(Family("Phi3ForCausalLM", read, NAMES, GGUF))
