"""Folding: a norm's weight and bias, or a whole norm that is linear, into the maps that read it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from normlab.model import Transformer
from normlab.model.linear import Linear
from normlab.norms import Norm
from normlab.registry import MethodCard
from normlab.transforms.base import DoesNotApply, Transform, transforms
from normlab.transforms.remove import Frozen
from normlab.transforms.surgery import (
    Vector,
    acts_last,
    add_to_bias,
    float64,
    new_model,
    put,
    read_by_maps,
    sublayers,
    take_affine,
    writer,
)


@transforms.register("fold")
@dataclass(frozen=True)
class Fold(Transform):
    """FlashNorm's weightless norms (arXiv:2407.09577, section 1), and norms that vanish altogether.

    For a norm y = γ ⊙ x̂ + β that only linear maps read, yW + c = x̂W* + c* with W* = ΓW and
    c* = c + βW. The norm keeps its statistic and loses γ and β. It holds for any norm whose weight
    and bias act last, DyT too; Gemma's weight is 1 + w. A constant factor after an input norm
    (LayerNorm Scaling) goes the same way.

    A norm that is a fixed linear map outside training goes away (BatchNorm with its running
    statistics, a frozen norm). For y = a ⊙ x + b, W* = diag(a)W and c* = c + bW. A mean that is
    subtracted is subtracted from each column of W*. Where such a norm stands after a map
    (norm_out), W* = W diag(a) and c* = c ⊙ a + b.

    Left alone: the final norm before a tied head, for the head is the embedding. So are norms that
    write to the stream (norm_out, post_norm, norm_embed), and norms of queries, keys and values.
    """

    card: ClassVar[MethodCard] = MethodCard(
        title="FlashNorm weight folding",
        formula="(γ ⊙ x̂ + β)W + c = x̂ (ΓW) + (c + βW)",
        source="Graef, Clapp, Wasielewski 2024, arXiv:2407.09577, section 1 (weightless)",
        property="in float64 the logits stay the same to 1e-12; bit for bit in float32 where every "
        "weight is a power of two and there is no bias",
        test="tests/transforms/test_fold.py::test_folding_is_exact",
    )

    def __call__(self, model: Transformer) -> Transformer:
        """The model with every foldable weight, bias and linear norm in its weights."""
        new = new_model(model)
        pairs = list(read_by_maps(new))
        stuck = [n.site.name for n in (getattr(o, a) for o, a, _ in pairs) if not _foldable(n)]
        done = [_fold_forward(*pair) for pair in pairs if _foldable(getattr(*pair[:2]))]
        done += [_fold_back(sub) for sub in sublayers(new)]
        if not any(done) and stuck:
            raise DoesNotApply(
                f"fold: the weight of {model.norm.type} doesn't act last, so it is no factor of "
                f"the maps after it (at {stuck[0]} and {len(stuck) - 1} other norms)"
            )
        if not any(done):
            raise DoesNotApply(
                f"fold: no weight, bias or linear norm stands before a linear map here (norm "
                f"{model.norm.type}, placement {model.placement.type})"
            )
        return new


def _foldable(norm: Norm) -> bool:
    return acts_last(norm) or _as_linear(norm) is not None


def _fold_forward(owner: Any, name: str, maps: list[Linear]) -> bool:
    """Fold the norm that `owner` has under `name`; whether there was anything to fold."""
    norm, factor = getattr(owner, name), _take_factor(owner, name)
    linear = _as_linear(norm)
    if linear is not None:
        setattr(owner, name, None)
    affine = take_affine(norm) if linear is None else linear[:2]
    if affine is None and factor == 1.0:
        return False
    a, b = affine or (np.ones(1), np.zeros(1))
    center = linear is not None and linear[2]
    for reader in maps:
        absorb(reader, factor * a, factor * b, center)
    return True


def _take_factor(owner: Any, name: str) -> float:
    """The constant factor after an input norm (LayerNorm Scaling's 1/√ℓ), set to 1, in place."""
    if name != "norm_in":
        return 1.0
    factor, owner.scale_in = owner.scale_in, 1.0
    return factor


def _as_linear(norm: Norm) -> tuple[Vector, Vector, bool] | None:
    """(a, b, whether the row is centred first) of a norm that is linear; else None."""
    found = norm.linear() if isinstance(norm, Frozen) else norm.fold()
    if found is None:
        return None
    a, b = (np.asarray(part, np.float64) for part in found)
    return a, b, isinstance(norm, Frozen) and norm.config.center


def absorb(linear: Linear, a: Vector, b: Vector, center: bool = False) -> None:
    """Make `linear`, in place, do to x what it did to a ⊙ x + b (x less its mean, if `center`)."""
    kernel = float64(linear.kernel)
    width = len(kernel)
    if np.any(b):
        add_to_bias(linear, np.broadcast_to(b, width) @ kernel)
    scaled = np.broadcast_to(a, width)[:, None] * kernel
    if center:
        scaled = scaled - scaled.mean(axis=0)
    put(linear.kernel, scaled)


def _fold_back(sub: Any) -> bool:
    """Fold a linear norm_out into the map before it; whether there was one."""
    found = None if sub.norm_out is None else _as_linear(sub.norm_out)
    if found is None or found[2]:
        return False
    a, b, _ = found
    linear = writer(sub.branch)
    put(linear.kernel, float64(linear.kernel) * a)
    if linear.bias is not None:
        put(linear.bias, float64(linear.bias) * a)
    if np.any(b):
        add_to_bias(linear, b)
    sub.norm_out = None
    return True
