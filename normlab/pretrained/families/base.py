"""What every family's file says: how its config is read, and where its weights lie.

A GGUF file's metadata is first written in the keys of Hugging Face's config.json
(`gguf.gguf_config`), so that one function per family serves both formats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from normlab.config import build
from normlab.model import ModelConfig, PlacementConfig
from normlab.norms import NormConfig
from normlab.pretrained.families.rope import FULL, SLIDING, divisors, factor, rope
from normlab.pretrained.keys import Keys
from normlab.pretrained.names import Names
from normlab.pretrained.source import CheckpointError
from normlab.registry import Registry, choice, unknown

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

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
    """How one family's config is read, and its weights' names in both formats.

    Args:
        class_name: of its models in `transformers`.
        read: a config.json's keys → our configs.
        folder: the names in Hugging Face's files.
        gguf: those in a GGUF file; None where llama.cpp has no such architecture.
        architecture: `general.architecture` there, where it isn't the `model_type`.
    """

    class_name: str
    read: Callable[[Keys], Configs]
    folder: Names
    gguf: Names | None = None
    architecture: str | None = None


families: Registry[Family] = Registry("architecture", package="normlab.pretrained.families")
"""By `model_type` of config.json. A file put into this package registers its family by itself."""


def architectures() -> dict[str, str]:
    """`general.architecture` of a GGUF file → `model_type`."""
    known = {name: families[name] for name in families}
    return {f.architecture or name: name for name, f in known.items() if f.gguf is not None}


def model_of(
    c: Keys, head_size: int, theta: float = 10000.0, *, partial: bool = False, **more: Any
) -> ModelConfig:
    """What the config.json of every family but GPT-2 and BERT says in the same words.

    Args:
        c: its keys.
        head_size: elements of a head.
        theta: `rope_theta` where it goes unsaid.
        partial: whether in this family a part of a head may turn.
        more: fields that the family has in its own words.
    """
    c.require("is_causal", True)  # some embedding models are decoders that look both ways
    turning = rope(c, theta)
    share = turning.number("partial_rotary_factor", 1.0)
    turned = int(head_size * share)
    if share != 1.0 and not (partial and 2 <= turned < head_size):
        raise CheckpointError(f"{c.where} has partial_rotary_factor = {share}: not supported")
    if "window" not in more and SLIDING in (layer_types(c) or ()):
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
        "rope_theta": turning.number("rope_theta"),
        "rope_divisors": divisors(turning, turned),
        "rope_factor": factor(turning),
        "rope_dim": None if share == 1.0 else turned,
        "tied": c.flag("tie_word_embeddings", False),
    }
    return build(ModelConfig, {**values, **more}, "model.")


def norm_of(c: Keys, kind: str = "rmsnorm", eps: str = "rms_norm_eps") -> NormConfig:
    """The norm of every site, by the config's own ε."""
    return build(NormConfig, {"type": kind, "eps": c.number(eps, zero=True)}, "norm.")


def head_size(c: Keys) -> int:
    """`head_dim`, or the width shared out over the heads."""
    shared = c.count("hidden_size") // c.count("num_attention_heads")
    return c.count("head_dim", shared, most=LARGEST_HEAD)


def layer_types(c: Keys) -> list[str] | None:
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


def one_window(c: Keys) -> dict[str, Any]:
    """All layers local, where `sliding_window` says so (Mistral, Phi 3)."""
    if c.get("sliding_window") is None:
        return {}
    return {"window": c.count("sliding_window"), "global_every": None}


def windows(c: Keys, unsaid: int) -> dict[str, Any]:
    """Local and global layers: each n-th is global, in whichever of three spellings."""
    layers, types = c.count("num_hidden_layers"), layer_types(c)
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


def configs(config: Mapping[str, Any], where: str) -> tuple[str, Configs]:
    """The family and the configs that a config.json (or what stands for it) describes.

    Raises:
        CheckpointError: an unknown architecture, a missing key, or something that isn't supported.
    """
    model_type = config.get("model_type", "none")
    if config.get("text_config"):
        raise CheckpointError(
            f"{where} is of a multimodal checkpoint ({model_type!r}, with a text_config): only "
            f"text models are read ({', '.join(families)}), and the text part of gemma3"
        )
    if model_type not in list(families):  # it may be anything
        raise CheckpointError(
            f"{where}: {unknown('architecture', model_type, families)} PyTorch computes any "
            "other: pretrained=torch:DIR."
        )
    try:
        keys = Keys(config, where)
        if config.get("quantization_config"):
            method = keys.part("quantization_config").get("quant_method", "an unnamed method")
            raise CheckpointError(
                f"{where}: its weights are quantized by {method}: expected plain floats "
                "(dequantize and save them again, or take a GGUF file)"
            )
        return model_type, families[model_type].read(keys)
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:  # what our own configs refuse
        raise CheckpointError(f"{where}: {error}") from error
