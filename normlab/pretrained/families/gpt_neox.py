"""GPT-NeoX and Pythia: attention and MLP side by side, a part of each head turned."""

from dataclasses import replace

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    Configs,
    Family,
    families,
    head_size,
    model_of,
    norm_of,
)
from normlab.pretrained.families.shared_names import BUFFERS, GGUF_PLAIN
from normlab.pretrained.keys import Keys
from normlab.pretrained.names import QKV, Names

_LAYER = "layers.{i}."
NAMES = Names(
    {
        "embed": "embed_in",
        "head": "lm_head",
        "norm_final": "final_layer_norm",
        "attention.norm_in": f"{_LAYER}input_layernorm",
        **dict.fromkeys(QKV, f"{_LAYER}attention.query_key_value"),
        "attention.branch.out": f"{_LAYER}attention.dense",
        "mlp.norm_in": f"{_LAYER}post_attention_layernorm",
        "mlp.branch.gate": f"{_LAYER}mlp.dense_h_to_4h",
        "mlp.branch.down": f"{_LAYER}mlp.dense_4h_to_h",
    },
    by_head=True,
    prefixes=("gpt_neox.",),
    prefix="gpt_neox.",
    endings=(("embed_out.weight", "lm_head.weight"),),
    head="embed_out",
    ignored=rf"{BUFFERS}|layers\.\d+\.attention\.(masked_)?bias$",
)


def read(c: Keys) -> Configs:
    """`rotary_pct` and `rotary_emb_base` are older words for two rotary settings."""
    heads = c.count("num_attention_heads")
    c.require("num_key_value_heads", heads, None)
    c.require("head_dim", c.count("hidden_size") // heads, None)
    older = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    said = {new: c.get(new, c.get(old)) for new, old in older.items()}
    if not c.part("rope_parameters").values:
        said["partial_rotary_factor"] = said["partial_rotary_factor"] or 0.25
    parallel = c.flag("use_parallel_residual", True)
    model = model_of(
        c.replaced(said),
        head_size(c),
        partial=True,
        gated=False,
        bias=c.flag("attention_bias", True),
        mlp_bias=True,
    )
    norm = norm_of(c, "layernorm", "layer_norm_eps")
    placement = PlacementConfig("parallel" if parallel else "pre")
    return Configs(model, norm, placement, c.count("vocab_size"))


families.register("gpt_neox")(
    Family(
        "GPTNeoXForCausalLM",
        read,
        NAMES,
        replace(GGUF_PLAIN, ignored=r"rope_freqs\.weight$"),
        "gptneox",
    )
)
