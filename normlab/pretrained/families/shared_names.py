"""Names of weights that several families have, in Hugging Face's files and in GGUF."""

from dataclasses import replace

from normlab.pretrained.names import Names

LAYER = "layers.{i}."
MODULES = {
    "embed": "embed_tokens",
    "head": "lm_head",
    "norm_final": "norm",
    "attention.norm_in": f"{LAYER}input_layernorm",
    "attention.norm_out": f"{LAYER}post_attention_layernorm",
    "attention.branch.query": f"{LAYER}self_attn.q_proj",
    "attention.branch.key": f"{LAYER}self_attn.k_proj",
    "attention.branch.value": f"{LAYER}self_attn.v_proj",
    "attention.branch.out": f"{LAYER}self_attn.o_proj",
    "attention.branch.norm_q": f"{LAYER}self_attn.q_norm",
    "attention.branch.norm_k": f"{LAYER}self_attn.k_norm",
    "mlp.norm_in": f"{LAYER}post_attention_layernorm",
    "mlp.norm_out": f"{LAYER}post_feedforward_layernorm",
    "mlp.branch.gate": f"{LAYER}mlp.gate_proj",
    "mlp.branch.up": f"{LAYER}mlp.up_proj",
    "mlp.branch.down": f"{LAYER}mlp.down_proj",
}
"""Llama's, which most decoders share."""

BUFFERS = r".*rotary_emb\.inv_freq$"

LLAMA = Names(MODULES, prefixes=("model.",), prefix="model.", ignored=BUFFERS)

GEMMA = Names(
    {**MODULES, "mlp.norm_in": f"{LAYER}pre_feedforward_layernorm"},
    gain_offset=1.0,
    prefixes=("language_model.model.", "model.language_model.", "language_model.", "model."),
    prefix="model.",
    ignored=rf"{BUFFERS}|(vision_tower|multi_modal_projector)\.",
)
"""Gemma 2 and 3, norm weights stored as γ − 1; of what sees, the text part."""

_BLOCK = "blk.{i}."
GGUF_MODULES = {
    "embed": "token_embd",
    "positions": "position_embd",
    "head": "output",
    "norm_final": "output_norm",
    "attention.norm_in": f"{_BLOCK}attn_norm",
    "attention.norm_out": f"{_BLOCK}post_attention_norm",
    "attention.branch.query": f"{_BLOCK}attn_q",
    "attention.branch.key": f"{_BLOCK}attn_k",
    "attention.branch.value": f"{_BLOCK}attn_v",
    "attention.branch.out": f"{_BLOCK}attn_output",
    "attention.branch.norm_q": f"{_BLOCK}attn_q_norm",
    "attention.branch.norm_k": f"{_BLOCK}attn_k_norm",
    "mlp.norm_in": f"{_BLOCK}ffn_norm",
    "mlp.norm_out": f"{_BLOCK}post_ffw_norm",
    "mlp.branch.gate": f"{_BLOCK}ffn_gate",
    "mlp.branch.up": f"{_BLOCK}ffn_up",
    "mlp.branch.down": f"{_BLOCK}ffn_down",
}

GGUF_NAMES = Names(GGUF_MODULES, ignored=r"rope_freqs\.weight$")
"""GGUF, whose files hold Gemma's norm weights as 1 + w already."""

GGUF_LLAMA = replace(GGUF_NAMES, paired=True)
"""GGUF's Llama, whose queries and keys llama.cpp stores in rotary pairs of neighbours."""

QKV = dict.fromkeys(
    (f"attention.branch.{part}" for part in ("query", "key", "value")), f"{_BLOCK}attn_qkv"
)
"""One map for queries, keys and values, as GGUF names it."""

GGUF_PLAIN = Names({**GGUF_MODULES, **QKV, "mlp.branch.gate": f"{_BLOCK}ffn_up"})
"""Queries, keys and values in one map, and no gate: GPT-2, GPT-NeoX."""
