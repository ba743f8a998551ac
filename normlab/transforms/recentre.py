"""LayerNorm into RMSNorm, by centring everything that writes to the residual stream."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flax import nnx
from jaxtyping import Float

from normlab.model import Transformer
from normlab.norms import Norm, all_norms, norms
from normlab.norms.statistics import LayerNorm, RMSNorm
from normlab.registry import MethodCard
from normlab.transforms.base import DoesNotApply, Transform, transforms
from normlab.transforms.surgery import (
    float64,
    new_model,
    put,
    sublayers,
    untie,
    writer,
)

EXACT = frozenset({"norm_in", "norm_final", "norm_qk", "norm_v", "sub_norm"})
"""Kinds of site that a model may have: none of them writes to the stream."""

READ_THE_STREAM = ("norm_in", "norm_final")


@transforms.register("recentre")
@dataclass(frozen=True)
class Recentre(Transform):
    """A pre-norm LayerNorm model as an RMSNorm model with the same logits.

    Let C = I − 11ᵀ/d, the map that takes a row's mean away (rows x, xC). Then E ← EC, P ← PC,
    W ← WC and b ← bC for each branch's last map hW + b. Proof sketch: every norm that reads the
    stream begins with xC, so the model depends on the stream through xC alone, as long as nothing
    else reads it. The stream is a sum of rows of the embedding, rows of the positions, and branches
    hW + b. C is linear, so xC is the sum of the same terms centred: EC, PC, hWC + bC. With those as
    weights the stream itself is xC. Its mean is 0, its variance is its mean square. So LayerNorm of
    it is RMSNorm of it, with the same ε, γ and β.

    That fails where a norm writes to the stream (norm_out, post_norm, norm_embed): C diag(γ) is no
    diagonal matrix, so the centred output is no norm's output. Such placements are refused. Norms
    inside a branch (norm_qk, norm_v, sub_norm) don't read the stream and stay LayerNorms. A tied
    head is untied first, for the centred embedding would be another head.

    Sources: Jiang et al. 2023, arXiv:2305.14858 (Pre-RMSNorm); Graef et al., arXiv:2407.09577;
    Ashkboos et al. 2024, arXiv:2401.15024 (SliceGPT, which converts LayerNorm models so).
    """

    card: ClassVar[MethodCard] = MethodCard(
        title="LayerNorm to RMSNorm by recentring",
        formula="E ← EC, P ← PC, W_o ← W_o C, W_down ← W_down C, b ← bC with C = I − 11ᵀ/d",
        source="Jiang, Gu, Zhu, Pan 2023, arXiv:2305.14858 (Pre-RMSNorm)",
        property="the residual stream's mean stays 0 and in float64 the logits stay the same to "
        "1e-12",
        test="tests/transforms/test_recentre.py::test_recentring_is_exact",
    )

    def __call__(self, model: Transformer) -> Transformer:
        """The model with RMSNorms where LayerNorms read the stream."""
        _check(model)
        new = new_model(model)
        untie(new)
        rows = new.embed.embedding if new.embed_in is None else new.embed_in.kernel
        for table in [rows] if new.positions is None else [rows, new.positions.embedding]:
            put(table, centred(float64(table)))
        for sub in sublayers(new):
            linear = writer(sub.branch)
            for param in (linear.kernel, linear.bias):
                if param is not None:
                    put(param, centred(float64(param)))
            sub.norm_in = as_rmsnorm(sub.norm_in)
        new.norm_final = as_rmsnorm(new.norm_final)
        new.norm = new.norm_final.config
        return new


def centred(x: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch d"]:
    """XC: each row less its mean."""
    return x - x.mean(axis=-1, keepdims=True)


def as_rmsnorm(norm: Any) -> RMSNorm:
    """The RMSNorm that does to a centred row what this LayerNorm does to it."""
    c = norm.config
    same = {f: getattr(c, f) for f in norms["rmsnorm"].Config.__dataclass_fields__}
    config = norms["rmsnorm"].Config(**(same | {"type": "rmsnorm", "center": False}))
    made = RMSNorm(norm.width, norm.site, config)
    made.weight, made.bias = nnx.data(norm.weight), nnx.data(norm.bias)
    return made


def _check(model: Transformer) -> None:
    """Refuse what would not be exact."""
    for norm in all_norms(model):
        if norm.site.kind not in EXACT:
            raise DoesNotApply(
                f"recentre: placement {model.placement.type!r} has a norm at {norm.site.name}, "
                "which writes to the residual stream, and no rewrite of the weights centres what "
                "a norm writes; expected pre-norm (placement=pre)"
            )
    reading = [sub.norm_in for sub in sublayers(model)] + [model.norm_final]
    if not all(_centres(norm) for norm in reading):
        raise DoesNotApply(
            f"recentre: expected a LayerNorm before every branch and before the head, got norm "
            f"{model.norm.type!r} in placement {model.placement.type!r}; nothing else takes the "
            "mean away"
        )
    if model.embed_length is not None:
        raise DoesNotApply(
            "recentre: the embedding's rows are all given one length (model.embed_length), in the "
            "stream and in a tied head, and centring the rows changes what that divides by; "
            "expected model.embed_length=null"
        )


def _centres(norm: Norm | None) -> bool:
    return type(norm) is LayerNorm and norm.config.center
