"""OPT: learned positions and ReLU; the 350M one is post-norm, its embedding narrower."""

from normlab.config import build
from normlab.model import ModelConfig, PlacementConfig
from normlab.norms import NormConfig
from normlab.pretrained.families.base import ACTIVATIONS, Configs, Family, families
from normlab.pretrained.keys import Keys
from normlab.pretrained.names import Names

_LAYER = "layers.{i}."
NAMES = Names(
    {
        "embed": "embed_tokens",
        "positions": "embed_positions",
        "embed_in": "project_in",
        "embed_out": "project_out",
        "head": "lm_head",
        "norm_final": "final_layer_norm",
        "attention.norm_in": f"{_LAYER}self_attn_layer_norm",
        "attention.post_norm": f"{_LAYER}self_attn_layer_norm",
        "attention.branch.query": f"{_LAYER}self_attn.q_proj",
        "attention.branch.key": f"{_LAYER}self_attn.k_proj",
        "attention.branch.value": f"{_LAYER}self_attn.v_proj",
        "attention.branch.out": f"{_LAYER}self_attn.out_proj",
        "mlp.norm_in": f"{_LAYER}final_layer_norm",
        "mlp.post_norm": f"{_LAYER}final_layer_norm",
        "mlp.branch.gate": f"{_LAYER}fc1",
        "mlp.branch.down": f"{_LAYER}fc2",
    },
    skipped={"positions": 2},
    prefixes=("model.decoder.", "decoder.", "model."),
    prefix="model.decoder.",
)
"""Its table of positions begins with two rows that no token of a whole window has."""


def read(c: Keys) -> Configs:
    """The ε is PyTorch's, 1e-5."""
    c.require("enable_bias", True)
    c.require("layer_norm_elementwise_affine", True)
    before = c.flag("do_layer_norm_before", True)
    if before:
        c.require("_remove_final_layer_norm", False)
    width = c.count("hidden_size")
    narrow = c.count("word_embed_proj_dim", width)
    values = {
        "layers": c.count("num_hidden_layers"),
        "width": width,
        "heads": c.count("num_attention_heads"),
        "hidden": c.count("ffn_dim"),
        "activation": ACTIVATIONS[c.word("activation_function", ACTIVATIONS, "relu")],
        "gated": False,
        "positions": "learned",
        "max_length": c.count("max_position_embeddings"),
        "embed_width": None if narrow == width else narrow,
        "tied": c.flag("tie_word_embeddings", True),
        "bias": True,
    }
    norm = build(NormConfig, {"type": "layernorm", "eps": 1e-5}, "norm.")
    placement = PlacementConfig("pre" if before else "post")
    return Configs(build(ModelConfig, values), norm, placement, c.count("vocab_size"))


families.register("opt")(Family("OPTForCausalLM", read, NAMES))
