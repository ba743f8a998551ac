"""Gemma 3: Gemma 2 with a norm on queries and keys, each sixth layer global; its text part."""

from collections.abc import Mapping
from typing import Any

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    LARGEST_HEAD,
    Configs,
    Family,
    families,
    model_of,
    norm_of,
)
from normlab.pretrained.families.gemma import later
from normlab.pretrained.families.rope import local_rope
from normlab.pretrained.families.shared_names import GEMMA, GGUF_NAMES
from normlab.pretrained.keys import Keys
from normlab.pretrained.source import CheckpointError

_GEMMA3_UNSAID = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_OUTSIDE = ("bos_token_id", "eos_token_id", "tie_word_embeddings", "quantization_config")


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the text model: the config itself, or the text part of a Gemma 3 that sees.

    What such a part does not say is as in transformers' `Gemma3TextConfig`.
    """
    if config.get("model_type") != "gemma3" or not isinstance(config.get("text_config"), dict):
        return config
    shared = {key: config[key] for key in _OUTSIDE if key in config}
    return {**_GEMMA3_UNSAID, **shared, **config["text_config"], "model_type": "gemma3_text"}


def read(c: Keys) -> Configs:
    """Local layers have rotary positions of a base of their own, unscaled."""
    shared = later(c, every=6)
    if "window" in shared:
        local = local_rope(c, 10000.0)
        shared["local_rope_theta"] = local.number("rope_theta")
        plain = {"rope_type": "default", "partial_rotary_factor": 1.0}
        if any(local.get(key, value) != value for key, value in plain.items()):
            raise CheckpointError(
                f"{c.where}: scaled or partial rotary positions in local layers: {local.values}"
            )
    model = model_of(c, c.count("head_dim", most=LARGEST_HEAD), theta=1e6, **shared)
    return Configs(model, norm_of(c), PlacementConfig("peri", norm_qk=True), c.count("vocab_size"))


families.register("gemma3_text")(Family("Gemma3ForCausalLM", read, GEMMA, GGUF_NAMES, "gemma3"))
