"""Deferred normalization: the linear map first, the division by the statistic after it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from normlab.model import Context, Transformer
from normlab.model.linear import Linear
from normlab.norms import Norm
from normlab.norms.context import PLAIN, NormContext
from normlab.norms.statistics import LayerNorm
from normlab.numerics import Accumulator, DoesNotFit
from normlab.registry import MethodCard
from normlab.transforms.base import DoesNotApply, Transform, transforms
from normlab.transforms.fold import Fold
from normlab.transforms.surgery import is_statistical, read_by_maps, sublayers


class DeferredNorm(Norm):
    """A LayerNorm or RMSNorm that hands on its row unscaled, and the factor beside it.

    Its output has d + 1 coordinates: x − μ (or x), then 1/√(σ² + ε). A `DeferredLinear` reads it.
    """

    def __init__(self, norm: LayerNorm):
        self.width, self.site, self.config = norm.width, norm.site, norm.config
        self.weight, self.bias = None, None

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch e"]:
        """The row and its factor, e = d + 1; a static scale touches the statistic alone."""
        acc = context.acc
        apart = {"product", "output"} & {*acc.datapath.stages}
        if apart or acc.datapath.root.kind == "divide":
            raise DoesNotFit(
                f"a deferred norm at {self.site.name}: its product is made by the map that reads "
                f"it, and has no stage (named: {', '.join(acc.datapath.stages)})"
            )
        z, mean_square = acc.moments(x, center=self.config.center)
        c = self.config
        factor = acc.inverse_rms(mean_square, c.eps, self.eps_form)
        return jnp.concatenate([z * acc.scale, factor / acc.scale], axis=-1).astype(x.dtype)


class DeferredLinear(Linear):
    """(aW) · f + b of a row a and its factor f, as `DeferredNorm` gives them.

    Without `scaled`, f is left out: for what a norm without ε follows (`cancel`).
    """

    def __init__(self, linear: Linear, scaled: bool = True):
        self.kernel, self.bias, self.scaled = linear.kernel, linear.bias, scaled

    def __call__(self, x: Float[Array, "*batch e"]) -> Float[Array, "*batch o"]:
        """The mapped rows, e = d + 1."""
        rows = x.reshape(-1, x.shape[-1])
        y = rows[:, :-1] @ self.kernel[...]
        if self.scaled:
            y = y * rows[:, -1:]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.reshape(*x.shape[:-1], -1)


@transforms.register("defer")
@dataclass(frozen=True)
class Defer(Transform):
    """FlashNorm's deferral (arXiv:2407.09577, section 1): z = (aW*) / RMS(a) + c.

    The product comes first, the division after it, before the bias is added.
    The model is folded first. Then the statistic can be computed beside the product, for it is
    needed after it only. Exact in real arithmetic. The price is that aW* is as large as the stream
    makes it: where FP16 holds the product, it overflows earlier (`peaks` measures by how much).
    """

    card: ClassVar[MethodCard] = MethodCard(
        title="FlashNorm deferred normalization",
        formula="(a / RMS(a)) W* + c = (a W*) / RMS(a) + c",
        source="Graef, Clapp, Wasielewski 2024, arXiv:2407.09577, section 1 (deferred)",
        property="in float64 the logits stay the same to 1e-12, while the products aW* scale with "
        "the stream",
        test="tests/transforms/test_defer.py::test_deferring_is_exact",
    )

    def __call__(self, model: Transformer) -> Transformer:
        """The model with every norm that only linear maps read deferred."""
        new = folded(model)
        places = [p for p in read_by_maps(new) if is_statistical(getattr(p[0], p[1]))]
        if not places:
            raise DoesNotApply(
                f"defer: no LayerNorm or RMSNorm stands before a linear map here (norm "
                f"{model.norm.type}, placement {model.placement.type})"
            )
        for owner, name, maps in places:
            setattr(owner, name, DeferredNorm(getattr(owner, name)))
            _defer(owner, name, maps)
        return new


def folded(model: Transformer) -> Transformer:
    """The model after `fold`; a copy of it where there is nothing to fold."""
    try:
        return Fold()(model)
    except DoesNotApply:
        return nnx.clone(model)


def _defer(owner: Any, name: str, maps: list[Linear]) -> None:
    """Put a `DeferredLinear` where the norm `name` of `owner` has its readers."""
    holder = owner.branch if name == "norm_in" else owner
    for attribute, value in list(vars(holder).items()):
        if any(value is linear for linear in maps):
            setattr(holder, attribute, DeferredLinear(value))


@transforms.register("cancel")
@dataclass(frozen=True)
class Cancel(Transform):
    """FlashNorm's cancellation (arXiv:2407.09577, section 4.1).

    z = RMSNorm(norm(a)W*) = RMSNorm(aW*) where ε = 0.

    Deferred normalization in which queries and keys, that norms of their own (norm_qk) make
    blind to scale, leave out the input norm's factor. Values keep it. With ε in norm_qk
    it is approximate, and not refused: ε acts as ε/RMS(a)² would.
    """

    card: ClassVar[MethodCard] = MethodCard(
        title="FlashNorm norm cancellation",
        formula="RMSNorm(RMSNorm(a) W*) = RMSNorm(a W*) at ε = 0",
        source="Graef, Clapp, Wasielewski 2024, arXiv:2407.09577, section 4.1",
        property="with ε = 0 in the query and key norms, the logits stay the same to 1e-12",
        test="tests/transforms/test_defer.py::test_cancelling_is_exact_without_eps",
    )

    def __call__(self, model: Transformer) -> Transformer:
        """The deferred model whose queries and keys are not divided."""
        new = Defer()(model)
        done = [_cancel(sub.branch) for sub in sublayers(new)]
        if not any(done):
            raise DoesNotApply(
                "cancel: expected a norm before attention and norms of queries and keys after it, "
                "with no bias between (placement.norm_qk=true)"
            )
        return new


def _cancel(branch: Any) -> bool:
    """Leave out the factor where a norm blind to scale follows; whether there was such a one."""
    done = False
    for linear, norm in (("query", "norm_q"), ("key", "norm_k")):
        reader = getattr(branch, linear, None)
        if not isinstance(reader, DeferredLinear) or reader.bias is not None:
            continue
        if is_statistical(getattr(branch, norm)):
            setattr(branch, linear, DeferredLinear(reader, scaled=False))
            done = True
    return done


@dataclass(frozen=True)
class Peak:
    """Largest absolute values in the products after one norm, over all tokens."""

    normalized: float
    deferred: float

    @property
    def growth(self) -> float:
        """How many times larger deferring makes the largest product."""
        return self.deferred / self.normalized


def peaks(model: Transformer, tokens: Int[Array, "b l"]) -> dict[str, Peak]:
    """For each norm that `defer` would defer, max |norm(a)W| and max |aW*|, biases left out.

    A product above 65504 is infinite in FP16.
    """
    model = folded(model)
    graphdef, params = nnx.split(model)

    @jax.jit
    def run(params: nnx.State, tokens: Array) -> dict[str, tuple[Array, Array]]:
        context = Context(capture=True)
        merged = nnx.merge(graphdef, params)
        merged(tokens, context)
        return dict(_products(merged, context))

    found = run(params, tokens)
    return {site: Peak(*(float(np.asarray(v)) for v in pair)) for site, pair in found.items()}


def _products(model: Transformer, context: Context) -> Iterator[tuple[str, tuple[Array, Array]]]:
    for owner, name, maps in read_by_maps(model):
        norm = getattr(owner, name)
        if is_statistical(norm):
            x = context.inputs[norm.site.name]
            z, _ = Accumulator().moments(x, center=norm.config.center)
            y = norm(x)
            largest = [jnp.max(jnp.abs(r @ m.kernel[...])) for r in (y, z) for m in maps]
            half = len(maps)
            yield norm.site.name, (jnp.stack(largest[:half]).max(), jnp.stack(largest[half:]).max())
