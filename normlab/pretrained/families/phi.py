"""Phi 1, 1.5 and 2: attention and MLP side by side behind one norm, a part of each head turned."""

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    Configs,
    Family,
    families,
    head_size,
    model_of,
    norm_of,
)
from normlab.pretrained.families.shared_names import BUFFERS, GGUF_MODULES, MODULES
from normlab.pretrained.keys import Keys
from normlab.pretrained.names import Names

_LAYER = "layers.{i}."
NAMES = Names(
    {
        **MODULES,
        "norm_final": "final_layernorm",
        "mlp.norm_in": f"{_LAYER}input_layernorm",
        "attention.branch.out": f"{_LAYER}self_attn.dense",
        "mlp.branch.gate": f"{_LAYER}mlp.fc1",
        "mlp.branch.down": f"{_LAYER}mlp.fc2",
    },
    prefixes=("model.",),
    prefix="model.",
    ignored=BUFFERS,
)
"""The one norm is loaded twice: before attention and before the MLP."""

GGUF = Names(
    {
        **GGUF_MODULES,
        "mlp.norm_in": GGUF_MODULES["attention.norm_in"],
        "mlp.branch.gate": GGUF_MODULES["mlp.branch.up"],
    }
)


def read(c: Keys) -> Configs:
    """Biases everywhere, on the head too."""
    c.require("qk_layernorm", False)
    model = model_of(
        c, head_size(c), partial=True, gated=False, bias=True, head_bias=True, tied=False
    )
    c.require("tie_word_embeddings", False)
    norm = norm_of(c, "layernorm", "layer_norm_eps")
    return Configs(model, norm, PlacementConfig("parallel"), c.count("vocab_size"))


families.register("phi")(Family("PhiForCausalLM", read, NAMES, GGUF, "phi2"))
