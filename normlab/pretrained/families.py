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
from normlab.pretrained.keys import Keys
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

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layer in `layer_types`."""
LARGEST_HEAD = 2**16
"""Elements of a head: each pair has a rotary frequency of its own."""


class Configs(NamedTuple):
    """What a checkpoint is, in our terms."""

    model: ModelConfig
    norm: NormConfig
    placement: PlacementConfig
    vocab_size: int


@dataclass(frozen=True)
class Family:
    """How one family's config is read, and its weights' names in both formats."""

    read: Callable[[Keys], Configs]
    folder: Names
    gguf: Names | None = None


# --- rotary positions


def _rope(c: Keys, theta: float) -> Keys:
    """The rotary settings of global layers, in whichever of three spellings."""
    given = c.part("rope_parameters")
    spellings = {
        "config": {key: c.get(key) for key in ("rope_theta", "partial_rotary_factor")},
        "rope_scaling": c.part("rope_scaling").values,
        "rope_parameters": (given.part(FULL) if FULL in given.values else given).values,
    }
    return _agreed(c.where, spellings, theta)


def _local_rope(c: Keys, theta: float) -> Keys:
    """Those of local layers, in whichever of two."""
    spellings = {
        "rope_local_base_freq": {"rope_theta": c.get("rope_local_base_freq")},
        "rope_parameters": c.part("rope_parameters").part(SLIDING).values,
    }
    return _agreed(c.where, spellings, theta)


def _agreed(where: str, spellings: Mapping[str, Mapping[str, Any]], theta: float) -> Keys:
    """What all spellings say together, and `theta` where none says it; nulls say nothing.

    Raises:
        CheckpointError: two of them say different things.
    """
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    for spelling, values in spellings.items():
        for key, value in values.items():
            key = "rope_type" if key == "type" else key
            if value is None:
                continue
            if key in found and found[key] != value:
                raise CheckpointError(
                    f"{where} has {key} = {found[key]!r} in {said[key]}, {value!r} in {spelling}: "
                    "expected one of them"
                )
            found[key], said[key] = value, said.get(key, spelling)
    return Keys({"rope_theta": theta} | found, where)


def _divisors(rope: Keys, head_size: int) -> tuple[float, ...]:
    kind = rope.word("rope_type", ("default", "linear", "llama3", "listed"), "default")
    if kind == "default":
        rope.require("factor", 1)  # it scales nothing, but somebody meant it to
        return ()
    rope = Keys(rope.values, f"the {kind} rope scaling of {rope.where}")
    if kind == "listed":  # as a GGUF file has them
        listed = rope["divisors"]
        return tuple(Keys({"divisor": d}, rope.where).number("divisor") for d in listed)
    if kind == "linear":
        return (rope.number("factor"),) * (head_size // 2)
    return _llama3_divisors(rope, head_size)


def _llama3_divisors(rope: Keys, head_size: int) -> tuple[float, ...]:
    """Llama 3.1's rule: slow turns are stretched, fast ones kept, those between interpolated."""
    half, factor = head_size // 2, rope.number("factor")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise CheckpointError(
            f"{rope.where} has low_freq_factor = {low} and high_freq_factor = {high}: expected the "
            "first to be less"
        )
    frequency = rope.number("rope_theta") ** (-np.arange(half) / half)
    turns = rope.count("original_max_position_embeddings") * frequency / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return tuple(float(d) for d in 1.0 / ((1.0 - kept) / factor + kept))


# --- configs


def _model(c: Keys, head_size: int, theta: float = 10000.0, **more: Any) -> ModelConfig:
    """What the config.json of every family but GPT-2 and BERT says in the same words."""
    c.require("is_causal", True)  # some embedding models are decoders that look both ways
    rope = _rope(c, theta)
    if (partial := rope.number("partial_rotary_factor", 1.0)) != 1.0:
        raise CheckpointError(f"{c.where} has partial_rotary_factor = {partial}: not supported")
    if "window" not in more and SLIDING in (_layer_types(c) or ()):
        raise CheckpointError(f"{c.where} has sliding layers in layer_types: not of this family")
    if "activation" not in more:
        more["activation"] = ACTIVATIONS[c.word("hidden_act", ACTIVATIONS)]
    heads = c.count("num_attention_heads")
    values = {
        "layers": c.count("num_hidden_layers"),
        "width": c.count("hidden_size"),
        "heads": heads,
        "kv_heads": c.count("num_key_value_heads", heads),
        "head_dim": head_size,
        "hidden": c.count("intermediate_size"),
        "max_length": c.count("max_position_embeddings"),
        "rope_theta": rope.number("rope_theta"),
        "rope_divisors": _divisors(rope, head_size),
        "tied": c.flag("tie_word_embeddings", False),
    }
    return build(ModelConfig, {**values, **more}, "model.")


def _norm(c: Keys, kind: str = "rmsnorm", eps: str = "rms_norm_eps") -> NormConfig:
    return build(NormConfig, {"type": kind, "eps": c.number(eps, zero=True)}, "norm.")


def _head_size(c: Keys) -> int:
    shared = c.count("hidden_size") // c.count("num_attention_heads")
    return c.count("head_dim", shared, most=LARGEST_HEAD)


def _llama(c: Keys) -> Configs:
    biased = c.flag("attention_bias", False)
    if (mlp := c.flag("mlp_bias", False)) != biased:
        raise CheckpointError(
            f"{c.where} has attention_bias = {biased} and mlp_bias = {mlp}: expected both alike"
        )
    model = _model(c, _head_size(c), bias=biased)
    return Configs(model, _norm(c), PlacementConfig("pre"), c.count("vocab_size"))


def _qwen2(c: Keys) -> Configs:
    c.require("use_sliding_window", False)
    model = _model(c, _head_size(c), qkv_bias=True)
    return Configs(model, _norm(c), PlacementConfig("pre"), c.count("vocab_size"))


def _qwen3(c: Keys) -> Configs:
    c.require("use_sliding_window", False)
    c.require("attention_bias", False)
    model = _model(c, c.count("head_dim", most=LARGEST_HEAD))
    return Configs(model, _norm(c), PlacementConfig("pre", norm_qk=True), c.count("vocab_size"))


def _olmo2(c: Keys) -> Configs:
    c.require("attention_bias", False)
    c.require("sliding_window", None, 0)  # OLMo 3 is of this architecture in GGUF
    placement = PlacementConfig("reordered", norm_qk=True, norm_qk_full=True)
    return Configs(_model(c, _head_size(c)), _norm(c), placement, c.count("vocab_size"))


def _gemma(
    c: Keys, every: int, softcaps: tuple[float | None, float | None] = (None, None)
) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common; a soft cap of null or 0 is none, `softcaps` if unsaid."""
    c.require("attention_bias", False)
    c.require("use_bidirectional_attention", False)
    key = "hidden_act" if c.get("hidden_activation") is None else "hidden_activation"
    act = c.word(key, ACTIVATIONS)
    if key == "hidden_act" and act == "gelu":  # by its older key and `gelu` the family means tanh
        act = "gelu_pytorch_tanh"
    return {
        "activation": ACTIVATIONS[act],
        "tied": c.flag("tie_word_embeddings", True),
        "embed_factor": math.sqrt(c.count("hidden_size")),
        "attention_scale": c.number("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": _softcap(c, "attn_logit_softcapping", softcaps[0]),
        "logit_softcap": _softcap(c, "final_logit_softcapping", softcaps[1]),
        **_windows(c, every),
    }


def _softcap(c: Keys, key: str, unsaid: float | None) -> float | None:
    return c.number(key, 0, zero=True) or None if key in c.values else unsaid


def _layer_types(c: Keys) -> list[str] | None:
    """`layer_types`, a known word for each layer; None where it is missing."""
    types, layers = c.get("layer_types"), c.count("num_hidden_layers")
    if types is None:
        return None
    if not isinstance(types, list) or len(types) != layers:
        entries = f"{len(types)} entries" if isinstance(types, list) else repr(types)
        raise CheckpointError(
            f"{c.where}: layer_types has {entries}: expected {layers}, num_hidden_layers"
        )
    return [choice("word in layer_types", t, (FULL, SLIDING)) for t in types]


def _windows(c: Keys, unsaid: int) -> dict[str, Any]:
    """Local and global layers: each n-th is global, in whichever of three spellings."""
    layers, types = c.count("num_hidden_layers"), _layer_types(c)
    patterns = ("sliding_window_pattern", "_sliding_window_pattern")
    found = {key: c.count(key) for key in patterns if c.get(key) is not None}
    if types is not None:
        found["layer_types"] = every = types.index(FULL) + 1 if FULL in types else layers + 1
        if any((t == FULL) != ((i + 1) % every == 0) for i, t in enumerate(types)):
            raise CheckpointError(f"{c.where}: layer_types is not every n-th layer global: {types}")
    several = {min(every, layers + 1) for every in found.values()} or {min(unsaid, layers + 1)}
    if len(several) > 1:
        raise CheckpointError(
            f"{c.where} says that each n-th layer is global by {found}: expected one n"
        )
    (every,) = several
    if every == 1:
        return {}
    return {
        "window": c.count("sliding_window"),
        "global_every": None if every > layers else every,
    }


def _gemma2(c: Keys) -> Configs:
    model = _model(
        c, c.count("head_dim", most=LARGEST_HEAD), **_gemma(c, every=2, softcaps=(50.0, 30.0))
    )
    return Configs(model, _norm(c), PlacementConfig("peri"), c.count("vocab_size"))


def _gemma3(c: Keys) -> Configs:
    shared = _gemma(c, every=6)
    if "window" in shared:
        local = _local_rope(c, 10000.0)
        shared["local_rope_theta"] = local.number("rope_theta")
        plain = {"rope_type": "default", "partial_rotary_factor": 1.0}
        if any(local.get(key, value) != value for key, value in plain.items()):
            raise CheckpointError(
                f"{c.where}: scaled or partial rotary positions in local layers: {local.values}"
            )
    model = _model(c, c.count("head_dim", most=LARGEST_HEAD), theta=1e6, **shared)
    return Configs(model, _norm(c), PlacementConfig("peri", norm_qk=True), c.count("vocab_size"))


def _gpt2(c: Keys) -> Configs:
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
    norm = _norm(c, "layernorm", "layer_norm_epsilon")
    return Configs(build(ModelConfig, values), norm, PlacementConfig("pre"), c.count("vocab_size"))


def _bert(c: Keys) -> Configs:
    """An encoder: post-norm, a norm on the embedding, no head of its own (tied, for its shape)."""
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
    norm = _norm(c, "layernorm", "layer_norm_eps")
    placement = PlacementConfig("post", norm_embed=True)
    return Configs(build(ModelConfig, values), norm, placement, c.count("vocab_size"))


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
        keys = Keys(config, where)
        if config.get("quantization_config"):
            method = keys.part("quantization_config").get("quant_method", "an unnamed method")
            raise CheckpointError(
                f"{where}: its weights are quantized by {method}: expected plain floats "
                "(dequantize and save them again, or take a GGUF file)"
            )
        return name, FAMILIES[name].read(keys)
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:  # what our own configs refuse
        raise CheckpointError(f"{where}: {error}") from error
