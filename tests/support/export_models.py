"""Tiny models as they are trained here, by the family that can say them."""

from typing import Any

MADE_HERE: dict[str, dict[str, Any]] = {
    "llama": {"placement": "lns"},
    "qwen3": {"placement_fields": {"norm_qk": True}},
    "gemma2": {"placement": "peri"},
    "gemma3_text": {"placement": "sandwich", "placement_fields": {"norm_qk": True}},
    "olmo2": {
        "placement": "reordered",
        "placement_fields": {"norm_qk": True, "norm_qk_full": True},
    },
    "gpt_neox": {"norm": "layernorm", "placement": "parallel", "gated": False},
    "gpt2": {"norm": "layernorm", "gated": False, "positions": "learned", "bias": True},
    "granite": {"branch_factor": 0.5, "embed_factor": 3.0, "logit_factor": 0.25},
    "mistral": {"window": 5},
}
"""Family → what `tests.conftest.tiny_model` is given."""
