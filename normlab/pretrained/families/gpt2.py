"""GPT-2: LayerNorm before each branch, learned positions, one map for queries, keys and values."""

from normlab.config import build
from normlab.model import ModelConfig, PlacementConfig
from normlab.pretrained.families.base import ACTIVATIONS, Configs, Family, families, norm_of
from normlab.pretrained.families.shared_names import GGUF_PLAIN
from normlab.pretrained.keys import Keys
from normlab.pretrained.names import Names

NAMES = Names(
    {
        "embed": "wte",
        "positions": "wpe",
        "head": "lm_head",
        "norm_final": "ln_f",
        "attention.norm_in": "h.{i}.ln_1",
        "attention.branch.query": "h.{i}.attn.c_attn",
        "attention.branch.key": "h.{i}.attn.c_attn",
        "attention.branch.value": "h.{i}.attn.c_attn",
        "attention.branch.out": "h.{i}.attn.c_proj",
        "mlp.norm_in": "h.{i}.ln_2",
        "mlp.branch.gate": "h.{i}.mlp.c_fc",
        "mlp.branch.down": "h.{i}.mlp.c_proj",
    },
    transposed=False,
    prefixes=("transformer.",),
    prefix="transformer.",
    ignored=r"h\.\d+\.attn\.(masked_)?bias$",
)
"""Maps stored [in, out]."""


def read(c: Keys) -> Configs:
    """Its config has words of its own."""
    c.require("is_causal", True)
    c.require("scale_attn_weights", True)
    c.require("scale_attn_by_inverse_layer_idx", False)
    width = c.count("n_embd")
    values = {
        "layers": c.count("n_layer"),
        "width": width,
        "heads": c.count("n_head"),
        "hidden": c.count("n_inner", 4 * width),
        "activation": ACTIVATIONS[c.word("activation_function", ACTIVATIONS, "gelu_new")],
        "gated": False,
        "positions": "learned",
        "max_length": c.count("n_positions"),
        "tied": c.flag("tie_word_embeddings", True),
        "bias": True,
    }
    norm = norm_of(c, "layernorm", "layer_norm_epsilon")
    return Configs(build(ModelConfig, values), norm, PlacementConfig("pre"), c.count("vocab_size"))


families.register("gpt2")(Family("GPT2LMHeadModel", read, NAMES, GGUF_PLAIN))
