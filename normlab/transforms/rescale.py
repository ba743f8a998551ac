"""Rescaling the residual stream, so that FP16 can hold it."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar

from normlab.config import require
from normlab.model import Transformer
from normlab.model.residual import Residual
from normlab.norms import Norm, all_norms
from normlab.registry import MethodCard
from normlab.transforms.base import DoesNotApply, Transform, transforms
from normlab.transforms.surgery import (
    acts_last,
    as_float64,
    float64,
    multiply,
    new_model,
    put,
    readers,
    set_affine,
    sublayers,
    writer,
)

"""The power of c that ε follows, by where it stands: under the root, or with the root."""

OF_EPS = (
    "layernorm", "rmsnorm", "prmsnorm", "groupnorm", "scalenorm", "fixnorm", "l1", "dropped-mean",
)  # fmt: skip
"""Norm types that ignore the size of their input but for ε. One that approximates them takes their
place after the rescaling: `rescale:0.25+doubled`."""

OF_ALPHA = ("dyt", "derf")
"""Norm types f(αx)."""


@transforms.register("rescale")
@dataclass(frozen=True)
class Rescale(Transform):
    """The same model with a residual stream c times as large: exact, ε included.

    x ← cx. Everything that writes to the stream is multiplied by c. That is the embedding's output
    (or γ and β of the norm on it). Of each branch it is γ and β of its output norm, or without one
    its last linear map. Everything that reads the stream is told. A norm takes ε·c² for ε, a DyT
    takes α/c; linear maps without a norm before them (OLMo 2's reordered placement) are divided by
    c. The final norm takes c out again. With c = 2ᵏ no bit of a float32 logit changes.

    With c < 1 the norms' inputs come back into FP16's range (Gemma 3's stream exceeds 65504). A
    norm that replaces the stream (post_norm) makes its size by itself: nothing to rescale.

    Sources: huggingface/transformers pull request 37226; ANEMLL's --fp16-scale.
    """

    c: float

    card: ClassVar[MethodCard] = MethodCard(
        title="residual stream rescaling",
        formula="x ← cx: E ← cE, (W_o, W_down) or γ_out ← c·, ε ← c²ε where the stream is read",
        source="gau-nernst 2025, huggingface/transformers pull request 37226; ε ← c²ε is ours",
        property="with c = 2ᵏ the float32 logits are the same bit for bit and the stream's peak is "
        "c times as large",
        test="tests/transforms/test_rescale.py::test_a_power_of_two_changes_no_bit",
    )

    def __post_init__(self) -> None:
        require(
            self.c > 0 and math.isfinite(self.c),
            f"rescale({self.c:g}): expected a factor > 0, such as rescale:0.25",
        )

    def __call__(self, model: Transformer) -> Transformer:
        """The model on the rescaled stream."""
        _check(model)
        new = new_model(model)
        _rescale_stem(new, self.c)
        for sub in sublayers(new):
            _rescale_branch(sub, self.c)
        _tell(new.norm_final, self.c)
        return new


def _check(model: Transformer) -> None:
    """Refuse a stream that is not a sum, and one that reaches the head as it is."""
    if any(norm.site.kind == "post_norm" for norm in all_norms(model)):
        raise DoesNotApply(
            f"rescale: placement {model.placement.type!r} normalizes the stream itself (post_norm),"
            " so its size is the norm's; expected a placement whose stream is a sum, such as pre"
        )
    if model.norm_final is None:
        raise DoesNotApply(
            f"rescale: placement {model.placement.type!r} has no final norm to take c out again"
        )


def _rescale_stem(model: Transformer, c: float) -> None:
    if model.norm_embed is not None:
        _scale_output(model.norm_embed, c)
    elif model.embed_scale is not None:
        put(model.embed_scale, float64(model.embed_scale) * c)
    else:
        if model.embed_length is not None:
            put(model.embed_length, float64(model.embed_length) * c)
        else:
            factor = model.config.embed_factor * c
            model.config = dataclasses.replace(model.config, embed_factor=factor)
        if model.positions is not None:
            put(model.positions.embedding, float64(model.positions.embedding) * c)


def _rescale_branch(sub: Residual, c: float) -> None:
    if sub.norm_in is not None:
        _tell(sub.norm_in, c)
    else:
        for linear in readers(sub.branch):
            put(linear.kernel, float64(linear.kernel) / c)
    if sub.norm_out is not None:
        _scale_output(sub.norm_out, c)
    else:
        multiply(writer(sub.branch), c)


def _tell(norm: Any, c: float) -> None:
    """Make a norm, in place, do to cx what it did to x."""
    kind: str = norm.config.type
    if kind in OF_EPS:
        eps = norm.config.eps * c**norm.eps_form.power
        norm.config = dataclasses.replace(norm.config, eps=eps)
    elif kind in OF_ALPHA:
        put(norm.alpha, float64(norm.alpha) / c)
    else:
        raise DoesNotApply(
            f"rescale: norm {kind!r} at {norm.site.name} can't be told of another size of its "
            f"input; expected one of {', '.join([*OF_EPS, *OF_ALPHA])}"
        )


def _scale_output(norm: Norm, c: float) -> None:
    """Multiply γ and β of a norm, in place, by c; a stored w becomes γ = 1 + w first."""
    if not acts_last(norm):
        raise DoesNotApply(
            f"rescale: norm {norm.config.type!r} at {norm.site.name} writes to the stream, and its "
            "weight doesn't act last, so it can't carry c"
        )
    gamma, beta = as_float64(norm.gamma(), 1.0), norm.beta()
    set_affine(norm, c * gamma, None if beta is None else c * as_float64(beta, 0.0))
