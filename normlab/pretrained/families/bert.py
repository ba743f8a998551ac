"""BERT's encoder, whatever head stands on it."""

from normlab.config import build
from normlab.model import ModelConfig, PlacementConfig
from normlab.pretrained.families.base import ACTIVATIONS, Configs, Family, families, norm_of
from normlab.pretrained.keys import Keys
from normlab.pretrained.names import Names

NAMES = Names(
    {
        "embed": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "norm_embed": "embeddings.LayerNorm",
        "attention.branch.query": "encoder.layer.{i}.attention.self.query",
        "attention.branch.key": "encoder.layer.{i}.attention.self.key",
        "attention.branch.value": "encoder.layer.{i}.attention.self.value",
        "attention.branch.out": "encoder.layer.{i}.attention.output.dense",
        "attention.post_norm": "encoder.layer.{i}.attention.output.LayerNorm",
        "mlp.branch.gate": "encoder.layer.{i}.intermediate.dense",
        "mlp.branch.down": "encoder.layer.{i}.output.dense",
        "mlp.post_norm": "encoder.layer.{i}.output.LayerNorm",
    },
    plus_row={"positions": "embeddings.token_type_embeddings.weight"},
    prefixes=("bert.",),
    prefix="bert.",
    endings=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    ignored=r"(pooler|cls|classifier|qa_outputs)\.|embeddings\.position_ids$",
)
"""Every token is of type 0, whose embedding goes into the positions'."""


def read(c: Keys) -> Configs:
    """Post-norm, a norm on the embedding, no head of its own (tied, for its shape)."""
    c.require("position_embedding_type", "absolute")
    c.require("is_decoder", False)
    values = {
        "layers": c.count("num_hidden_layers"),
        "width": c.count("hidden_size"),
        "heads": c.count("num_attention_heads"),
        "hidden": c.count("intermediate_size"),
        "activation": ACTIVATIONS[c.word("hidden_act", ACTIVATIONS)],
        "gated": False,
        "positions": "learned",
        "max_length": c.count("max_position_embeddings"),
        "bias": True,
        "causal": False,
    }
    norm = norm_of(c, "layernorm", "layer_norm_eps")
    placement = PlacementConfig("post", norm_embed=True)
    return Configs(build(ModelConfig, values), norm, placement, c.count("vocab_size"))


families.register("bert")(Family("BertModel", read, NAMES))
