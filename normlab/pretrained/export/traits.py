"""What sets one architecture apart from another, of a model and of a family's configs alike."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normlab.model import ModelConfig, Transformer
from normlab.model.placement import SUBLAYERS
from normlab.norms import NormConfig, all_norms
from normlab.norms.statistics import LayerNorm
from normlab.pretrained.families import Configs
from normlab.transforms.surgery import is_statistical, sublayers

Traits = dict[str, Any]
MAY_LACK = (
    *("biases of q, k, v", "bias of attention's output", "biases of the MLP", "head bias"),
    *("norm weights", "norm biases"),
)
"""What a family may have and a model not: 0 then, or 1, is as good."""
_SIZES = (
    *("layers", "width", "heads", "kv", "head_size", "hidden_size", "activation", "gated"),
    *("positions", "max_length", "causal", "embed_width"),
)
_FACTORS = ("attention_softcap", "logit_softcap", "branch_factor", "logit_factor")


@dataclass(frozen=True)
class Difference:
    """One trait in which a family isn't as a model needs it."""

    trait: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return f"{self.trait} = {_said(self.theirs)}, not {_said(self.ours)}"


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def of_model(model: Transformer) -> Traits:
    """Of a model as it stands, whatever was done to it since its config was written."""
    c, subs = model.config, list(sublayers(model))
    branches: list[Any] = [sub.branch for sub in subs]
    attention, mlps = branches[::2], branches[1::2]
    norms = all_norms(model)
    placed = [
        (_kinds(sub), sub.alpha, sub.parallel, getattr(sub.branch, "head_scale", None) is not None)
        for sub in subs
    ]
    return {
        "norm": " and ".join(sorted({_kind(n.config, n) for n in norms})),
        "placement": Placed(model.placement.type, (*placed, _around(model))),
        "norm of q and k": [_width(a.norm_q) for a in attention],
        "norm of q and k after positions": any(a.norm_q and a.rotated_qk for a in attention),
        **_of_config(c),
        "biases of q, k, v": any(m.bias is not None for a in attention for m in _qkv(a)),
        "bias of attention's output": any(a.out.bias is not None for a in attention),
        "biases of the MLP": any(
            m is not None and m.bias is not None for b in mlps for m in (b.gate, b.up, b.down)
        ),
        "head bias": model.head is not None and model.head.bias is not None,
        "norm weights": any(n.weight is not None for n in norms),
        "norm biases": any(n.bias is not None for n in norms),
    }


def of_configs(configs: Configs) -> Traits:
    """Of what a family's config describes."""
    c, norm, where, _ = configs
    at = [where.residual(s, i, c.layers) for i in range(c.layers) for s in SUBLAYERS]
    placed = [(r.sites - {"norm_qk"}, r.alpha, r.parallel, r.head_scales) for r in at]
    q = c.head_size * (c.heads if where.norm_qk_full else 1)
    return {
        "norm": _kind(norm),
        "placement": Placed(where.type, (*placed, where.around(c.layers))),
        "norm of q and k": [q if where.norm_qk else None] * c.layers,
        "norm of q and k after positions": where.norm_qk_rotated,
        **_of_config(c),
        "biases of q, k, v": c.bias if c.qkv_bias is None else c.qkv_bias,
        "bias of attention's output": c.bias,
        "biases of the MLP": c.bias if c.mlp_bias is None else c.mlp_bias,
        "head bias": c.head_bias,
        "norm weights": getattr(norm, "use_weight", False),
        "norm biases": getattr(norm, "bias", False),
    }


def differences(ours: Traits, theirs: Traits) -> list[Difference]:
    """What keeps a family from being a model, the norm first."""
    return [
        Difference(trait, value, theirs[trait])
        for trait, value in ours.items()
        if not (_same(value, theirs[trait]) or (trait in MAY_LACK and not value))
    ]


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-6)  # a GGUF file has them in float32
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


@dataclass(frozen=True)
class Placed:
    """A placement by what it does; its name is for messages."""

    name: str
    places: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placed) and self.places == other.places

    def __hash__(self) -> int:
        return hash(self.places)

    def __str__(self) -> str:
        return self.name


def _of_config(c: ModelConfig) -> Traits:
    """Sizes and constants, as they act."""
    window = [c.window if c.local(i) else None for i in range(c.layers)]
    scale = c.attention_scale or c.head_size**-0.5
    said: Mapping[str, Any] = {name: getattr(c, name) for name in (*_SIZES, *_FACTORS)}
    rotary = {} if c.positions != "rotary" else {"rotary": [_rotary(c, i) for i in range(c.layers)]}
    window = [None if size is None or size >= c.max_length else size for size in window]
    return {**said, "attention_scale": scale, "window": window, "rotary": None, **rotary}


def _rotary(c: ModelConfig, layer: int) -> tuple[Any, ...]:
    """Base, divisors, factor and turned elements of one layer."""
    turned = c.head_size if c.rope_dim is None else c.rope_dim
    if c.local(layer) and c.local_rope_theta is not None:
        return c.local_rope_theta, (), 1.0, turned
    return c.rope_theta, c.rope_divisors, c.rope_factor, turned


def _kind(config: NormConfig, norm: Any = None) -> str:
    """What a norm computes: the two registered types are one class, told apart by the mean."""
    if norm is not None and not is_statistical(norm):
        return config.type
    if config.type not in ("layernorm", "rmsnorm"):
        return config.type
    form = getattr(config, "eps_form", "under")
    kind = "layernorm" if getattr(config, "center", False) else "rmsnorm"
    return kind if form == "under" else f"{kind} with eps_form = {form}"


def _kinds(sub: Any) -> frozenset[str]:
    """The kinds of site of a sublayer that hold a norm, but for those of queries and keys."""
    places = [(sub, k) for k in ("norm_in", "norm_out", "post_norm")]
    places += [(sub.branch, k) for k in ("sub_norm", "norm_v")]
    return frozenset(k for owner, k in places if getattr(owner, k, None) is not None)


def _around(model: Transformer) -> frozenset[str]:
    found = {"norm_embed": model.norm_embed, "norm_final": model.norm_final}
    return frozenset(site for site, norm in found.items() if norm is not None)


def _width(norm: LayerNorm | None) -> int | None:
    return None if norm is None else norm.width


def _qkv(attention: Any) -> tuple[Any, ...]:
    return attention.query, attention.key, attention.value
