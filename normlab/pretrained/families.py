"""Model families: a checkpoint's own config → ours, and where each of our weights lies in it.

A GGUF file's metadata is first written in the keys of Hugging Face's config.json
(`gguf.gguf_config`), so that one function per family serves both formats.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from normlab.config import build
from normlab.model import ModelConfig, PlacementConfig
from normlab.norms import NormConfig
from normlab.pretrained.names import (
    BERT,
    GEMMA,
    GGUF_GPT2,
    GGUF_LLAMA,
    GGUF_NAMES,
    GPT2,
    LLAMA,
    Names,
)
from normlab.pretrained.source import CheckpointError
from normlab.registry import choice

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


KINDS = ("full_attention", "sliding_attention")
"""Kinds of layer in `layer_types`."""


class Configs(NamedTuple):
    """What a checkpoint is, in our terms."""

    model: ModelConfig
    norm: NormConfig
    placement: PlacementConfig
    vocab_size: int


@dataclass(frozen=True)
class Family:
    """How one family's config is read, and its weights' names in both formats."""

    read: Callable[["Keys"], Configs]
    folder: Names
    gguf: Names | None = None


class Keys:
    """A config.json's content, whose missing keys are errors that name them."""

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values = values
        self.where = where

    def __getitem__(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise CheckpointError(f"{self.where} has no {key!r}")
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def require(self, key: str, *allowed: Any) -> None:
        """Refuse a value that we would silently compute otherwise; missing is fine."""
        value = self.get(key, allowed[0])
        if value not in allowed:
            raise CheckpointError(
                f"{self.where} has {key} = {value!r}, which is not supported (only {allowed[0]!r})"
            )


# --- rotary positions


def _rope(c: Keys, kind: str, theta: float) -> dict[str, Any]:
    """The rotary settings of one kind of layer, in whichever of three spellings.

    Raises:
        CheckpointError: two of them say different things.
    """
    given = c.get("rope_parameters", {})
    spellings = {
        "config": {key: c.get(key) for key in ("rope_theta", "partial_rotary_factor")},
        "rope_scaling": c.get("rope_scaling", {}) if kind == "full_attention" else {},
        "rope_parameters": given.get(kind, given),
    }
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    for where, values in spellings.items():
        for key, value in values.items():
            key = "rope_type" if key == "type" else key
            if value is None:
                continue
            if found.setdefault(key, value) != value:
                raise CheckpointError(
                    f"{c.where} has {key} = {found[key]!r} in {said[key]}, {value!r} in {where}: "
                    "expected one of them"
                )
            said.setdefault(key, where)
    return {"rope_theta": theta, "partial_rotary_factor": 1.0} | found


def _divisors(c: Keys, given: dict[str, Any], head_size: int) -> tuple[float, ...]:
    kind = choice(
        f"rope_type in {c.where}",
        given.get("rope_type", given.get("type", "default")),
        ("default", "linear", "llama3", "listed"),
    )
    if kind == "default":
        return ()
    rope = Keys(given, f"the {kind} rope scaling of {c.where}")
    if kind == "listed":  # as a GGUF file has them
        return tuple(float(d) for d in rope["divisors"])
    if kind == "linear":
        return (float(rope["factor"]),) * (head_size // 2)
    return _llama3_divisors(rope, head_size)


def _llama3_divisors(rope: Keys, head_size: int) -> tuple[float, ...]:
    """Llama 3.1's rule: slow turns are stretched, fast ones kept, those between interpolated."""
    half, factor = head_size // 2, rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    frequency = rope["rope_theta"] ** (-np.arange(half) / half)
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return tuple(float(d) for d in 1.0 / ((1.0 - kept) / factor + kept))


# --- configs


def _model(c: Keys, head_size: int, theta: float = 10000.0, **more: Any) -> ModelConfig:
    """What the config.json of every family but GPT-2 and BERT says in the same words."""
    c.require("is_causal", True)  # some embedding models are decoders that look both ways
    rope = _rope(c, "full_attention", theta)
    if "activation" not in more:
        act = c["hidden_act"]
        more["activation"] = ACTIVATIONS[choice(f"activation in {c.where}", act, ACTIVATIONS)]
    if (partial := rope["partial_rotary_factor"]) != 1.0:
        raise CheckpointError(f"{c.where} has partial_rotary_factor = {partial}: not supported")
    values = {
        "layers": c["num_hidden_layers"],
        "width": c["hidden_size"],
        "heads": c["num_attention_heads"],
        "kv_heads": c.get("num_key_value_heads", c["num_attention_heads"]),
        "head_dim": head_size,
        "hidden": c["intermediate_size"],
        "max_length": c["max_position_embeddings"],
        "rope_theta": rope["rope_theta"],
        "rope_divisors": _divisors(c, rope, head_size),
        "tied": c.get("tie_word_embeddings", False),
    }
    return build(ModelConfig, {**values, **more}, "model.")


def _norm(c: Keys, kind: str = "rmsnorm", eps: str = "rms_norm_eps") -> NormConfig:
    return build(NormConfig, {"type": kind, "eps": c[eps]}, "norm.")


def _head_size(c: Keys) -> int:
    given = c.get("head_dim")
    return c["hidden_size"] // c["num_attention_heads"] if given is None else given


def _llama(c: Keys) -> Configs:
    biased = c.get("attention_bias", False)
    if (mlp := c.get("mlp_bias", False)) != biased:
        raise CheckpointError(
            f"{c.where} has attention_bias = {biased} and mlp_bias = {mlp}: expected both alike"
        )
    model = _model(c, _head_size(c), bias=biased)
    return Configs(model, _norm(c), PlacementConfig("pre"), c["vocab_size"])


def _qwen2(c: Keys) -> Configs:
    c.require("use_sliding_window", False)
    model = _model(c, _head_size(c), qkv_bias=True)
    return Configs(model, _norm(c), PlacementConfig("pre"), c["vocab_size"])


def _qwen3(c: Keys) -> Configs:
    c.require("use_sliding_window", False)
    c.require("attention_bias", False)
    model = _model(c, c["head_dim"])
    return Configs(model, _norm(c), PlacementConfig("pre", norm_qk=True), c["vocab_size"])


def _olmo2(c: Keys) -> Configs:
    c.require("attention_bias", False)
    c.require("sliding_window", None, 0)  # OLMo 3 is of this architecture in GGUF
    placement = PlacementConfig("reordered", norm_qk=True, norm_qk_full=True)
    return Configs(_model(c, _head_size(c)), _norm(c), placement, c["vocab_size"])


def _gemma(
    c: Keys, every: int, softcaps: tuple[float | None, float | None] = (None, None)
) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common; a soft cap of null or 0 is none, `softcaps` if unsaid."""
    c.require("attention_bias", False)
    c.require("use_bidirectional_attention", False)
    act = c.get("hidden_activation")
    if act is None:  # by its older key and `gelu` the family means tanh
        act = "gelu_pytorch_tanh" if c["hidden_act"] == "gelu" else c["hidden_act"]
    return {
        "activation": ACTIVATIONS[choice(f"activation in {c.where}", act, ACTIVATIONS)],
        "tied": c.get("tie_word_embeddings", True),
        "embed_factor": math.sqrt(c["hidden_size"]),
        "attention_scale": c["query_pre_attn_scalar"] ** -0.5,
        "attention_softcap": c.values.get("attn_logit_softcapping", softcaps[0]) or None,
        "logit_softcap": c.values.get("final_logit_softcapping", softcaps[1]) or None,
        **_windows(c, every),
    }


def _windows(c: Keys, every: int) -> dict[str, Any]:
    """Local and global layers: `layer_types`, checked to be a pattern that we can say."""
    layers = c["num_hidden_layers"]
    every = c.get("sliding_window_pattern", c.get("_sliding_window_pattern", every))
    if not isinstance(every, int) or every < 1:
        raise CheckpointError(f"{c.where}: sliding_window_pattern = {every!r}: expected n ≥ 1")
    default = [
        "full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)
    ]
    types = [choice(f"layer type in {c.where}", t, KINDS) for t in c.get("layer_types", default)]
    if len(types) != layers:
        raise CheckpointError(
            f"{c.where}: layer_types has {len(types)} entries: expected {layers}, num_hidden_layers"
        )
    if "sliding_attention" not in types:
        return {}
    found = types.index("full_attention") + 1 if "full_attention" in types else None
    config = {"window": c["sliding_window"], "global_every": found}
    probe = ModelConfig(**config)
    if [probe.local(i) for i in range(layers)] != [t == "sliding_attention" for t in types]:
        raise CheckpointError(f"{c.where}: layer_types is not every n-th layer global: {types}")
    return config


def _gemma2(c: Keys) -> Configs:
    model = _model(c, c["head_dim"], **_gemma(c, every=2, softcaps=(50.0, 30.0)))
    return Configs(model, _norm(c), PlacementConfig("peri"), c["vocab_size"])


def _gemma3(c: Keys) -> Configs:
    shared = _gemma(c, every=6)
    if "window" in shared:
        old = c.get("rope_local_base_freq", 10000.0)
        local = c.get("rope_parameters", {}).get("sliding_attention", {})
        shared["local_rope_theta"] = local.get("rope_theta", old)
        plain = {"rope_type": "default", "partial_rotary_factor": 1.0}
        if any(local.get(key, value) != value for key, value in plain.items()):
            raise CheckpointError(
                f"{c.where}: scaled or partial rotary positions in local layers: {local}"
            )
    model = _model(c, c["head_dim"], theta=1e6, **shared)
    return Configs(model, _norm(c), PlacementConfig("peri", norm_qk=True), c["vocab_size"])


def _gpt2(c: Keys) -> Configs:
    c.require("is_causal", True)
    c.require("scale_attn_weights", True)
    c.require("scale_attn_by_inverse_layer_idx", False)
    act = c.get("activation_function", "gelu_new")
    values = {
        "layers": c["n_layer"],
        "width": c["n_embd"],
        "heads": c["n_head"],
        "hidden": c.get("n_inner", 4 * c["n_embd"]),
        "activation": ACTIVATIONS[choice(f"activation in {c.where}", act, ACTIVATIONS)],
        "gated": False,
        "positions": "learned",
        "max_length": c["n_positions"],
        "tied": c.get("tie_word_embeddings", True),
        "bias": True,
    }
    norm = _norm(c, "layernorm", "layer_norm_epsilon")
    return Configs(build(ModelConfig, values), norm, PlacementConfig("pre"), c["vocab_size"])


def _bert(c: Keys) -> Configs:
    """An encoder: post-norm, a norm on the embedding, no head of its own (tied, for its shape)."""
    c.require("position_embedding_type", "absolute")
    c.require("is_decoder", False)
    act = c["hidden_act"]
    values = {
        "layers": c["num_hidden_layers"],
        "width": c["hidden_size"],
        "heads": c["num_attention_heads"],
        "hidden": c["intermediate_size"],
        "activation": ACTIVATIONS[choice(f"activation in {c.where}", act, ACTIVATIONS)],
        "gated": False,
        "positions": "learned",
        "max_length": c["max_position_embeddings"],
        "bias": True,
        "causal": False,
    }
    norm = _norm(c, "layernorm", "layer_norm_eps")
    placement = PlacementConfig("post", norm_embed=True)
    return Configs(build(ModelConfig, values), norm, placement, c["vocab_size"])


FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, LLAMA, GGUF_LLAMA),
    "qwen2": Family(_qwen2, LLAMA, GGUF_NAMES),
    "qwen3": Family(_qwen3, LLAMA, GGUF_NAMES),
    "olmo2": Family(_olmo2, LLAMA, GGUF_NAMES),
    "gemma2": Family(_gemma2, GEMMA, GGUF_NAMES),
    "gemma3_text": Family(_gemma3, GEMMA, GGUF_NAMES),
    "gpt2": Family(_gpt2, GPT2, GGUF_GPT2),
    "bert": Family(_bert, BERT),
}
"""By `model_type` of config.json."""

GGUF_TYPES = {
    **{name: name for name, family in FAMILIES.items() if family.gguf is not None},
    "gemma3": "gemma3_text",
}
del GGUF_TYPES["gemma3_text"]
"""`general.architecture` of a GGUF file → `model_type`."""


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


def configs(config: Mapping[str, Any], where: str) -> tuple[str, Configs]:
    """The family and the configs that a config.json (or what stands for it) describes.

    Raises:
        CheckpointError: an unknown architecture, a missing key, or something that isn't supported.
    """
    model_type = config.get("model_type", "none")
    if config.get("text_config"):
        raise CheckpointError(
            f"{where} is of a multimodal checkpoint ({model_type!r}, with a text_config): only "
            f"text models are read ({', '.join(FAMILIES)}), and the text part of gemma3"
        )
    try:
        name = choice("architecture", model_type, FAMILIES)
        if quantized := config.get("quantization_config"):
            raise CheckpointError(
                f"{where}: its weights are quantized by "
                f"{quantized.get('quant_method', 'an unnamed method')}: expected plain floats "
                "(dequantize and save them again, or take a GGUF file)"
            )
        return name, FAMILIES[name].read(Keys(config, where))
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where}: {error}") from error
