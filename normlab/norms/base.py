"""What every norm has in common: its site, its config, its weight and bias."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from normlab.config import field, require
from normlab.norms.context import PLAIN, NormContext
from normlab.norms.reference import Params, Rows
from normlab.numerics import Accumulator, RangeCounts, RangeRecorder
from normlab.numerics.eps import EpsForm
from normlab.registry import MethodCard, Registry


class Norms(Registry[type["Norm"]]):
    """The norm types; each has a config of its own, whose `type` is its name."""

    def register(self, name: str) -> Callable[[type["Norm"]], type["Norm"]]:
        """Decorator: put a class under a name.

        Raises:
            ValueError: its config's type is another one, so that config would build another norm.
        """

        def put(kind: type["Norm"]) -> type["Norm"]:
            said = kind.Config.type if hasattr(kind.Config, "type") else None
            require(
                said == name,
                f"norm {name!r}: {kind.__name__}.Config has type = {said!r}: expected a dataclass "
                f"of its own with type: str = field({name!r}, …)",
            )
            return register(kind)

        register = super().register(name)
        return put


norms = Norms("norm", package="normlab.norms")
"""Every norm type by name. A file put into this package registers its classes by itself."""


@dataclass(frozen=True)
class Site:
    """Where in a transformer a norm sits.

    Args:
        kind: norm_in, norm_out, post_norm, norm_embed, norm_final, norm_qk, norm_v or sub_norm.
        name: its path in the model, unique: "blocks.3.attention.norm_in", "norm_final".
    """

    kind: str
    name: str

    @property
    def branch(self) -> str | None:
        """The sublayer it belongs to: "attention", "mlp", or None outside the blocks."""
        parts = self.name.split(".")
        return parts[2] if parts[0] == "blocks" else None


@dataclass(frozen=True)
class NormConfig:
    """What every norm type's config has; each type's own `Config` extends it."""

    type: str = field("rmsnorm", "norm type, a registered name (set by norm=NAME)")

    @classmethod
    def variant(cls, values: Mapping[str, Any]) -> Any:
        """The config class of the type that `values` names (see `normlab.config.build`)."""
        return norms[values.get("type", cls.type)].Config


def check_divides(field: str, parts: int, width: int, site: Site) -> None:
    """Raise `ValueError` where a row can't be cut into so many equal parts."""
    if width % parts:
        near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: abs(n - parts))
        raise ValueError(
            f"{field} = {parts} doesn't divide the width {width} of {site.name}; "
            f"the nearest number that does is {near}"
        )


class OutsideBlockError(ValueError):
    """A norm was called by itself that needs what entered its block."""


class NormState(nnx.Variable[Array]):
    """What a norm keeps beside its parameters: carried through training, never differentiated."""


class Norm(nnx.Module):
    """A map of rows x ∈ R^d that keeps their shape: the base class of every norm type.

    A subclass registers itself (`@norms.register("name")`), brings a frozen dataclass as `Config`
    and implements `__call__`. It is built for a width (d) and a `Site`; its parameters start at
    values that depend on nothing else.

    `weight` and `bias` hold what is stored, or None; `gamma()` and `beta()` are what acts.
    """

    Config: ClassVar[type[NormConfig]] = NormConfig
    card: ClassVar[MethodCard]
    """Its row of the reference table."""
    has_statistic: ClassVar[bool] = True
    """Whether a sum over the row is accumulated, so that a precision means something."""
    differentiable: ClassVar[bool] = True
    """Whether its derivative is that of its formula; False where it truly rounds (integers)."""
    affine_last: ClassVar[bool] = True
    """Whether y = γ ⊙ f(x) + β, γ and β as stored here, and f knows nothing of them."""
    centred_statistic: ClassVar[bool] = True
    """Whether a norm that centres (`config.center`) accumulates the centred row."""
    unit_rows: ClassVar[bool] = True
    """Whether y = γ ⊙ x̂ + β with ‖x̂‖₂ ≤ √d for every x, which the static scale rules rest on."""

    def __init__(self, width: int, site: Site, config: Any):
        self.width = width
        self.site = site
        self.config = config
        initial = jnp.zeros if getattr(config, "one_plus", False) else jnp.ones
        self.weight = nnx.Param(initial(width)) if getattr(config, "use_weight", False) else None
        self.bias = nnx.Param(jnp.zeros(width)) if getattr(config, "bias", False) else None

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """The normalized rows, in the arithmetic of `context.acc`, in the dtype of `x`.

        In training (`context.progress`) it may also update its `NormState`.
        """
        raise NotImplementedError

    @staticmethod
    def reference(x: Rows, config: Any, params: Params) -> Rows:
        """The formula once more in float64 NumPy, which tests compare `__call__` with.

        Args:
            x: rows [*batch, d].
            config: of the norm.
            params: its parameters and its state by name.
        """
        raise NotImplementedError

    def gamma(self) -> Float[Array, "..."] | None:
        """γ, the weight that multiplies x̂: as stored, or one more (`one_plus`); or None."""
        if self.weight is None:
            return None
        stored = self.weight[...]
        return 1.0 + stored if getattr(self.config, "one_plus", False) else stored

    def gamma_in(self, acc: Accumulator) -> Float[Array, "..."] | None:
        """`gamma` as a datapath makes it of the weight that is stored."""
        if self.weight is None or not acc.datapath.makes_gamma:
            return self.gamma()
        return acc.gamma(self.weight[...], getattr(self.config, "one_plus", False))

    def beta(self) -> Float[Array, "..."] | None:
        """β, the bias that is added last; None without one."""
        return None if self.bias is None else self.bias[...]

    def affine(
        self, y: Float[Array, "*batch d"], x: Float[Array, "*batch d"], context: NormContext
    ) -> Float[Array, "*batch d"]:
        """γ ⊙ y + β, each where the config has it, in the dtype of the rows `x` that came."""
        acc = context.acc if self.has_statistic else PLAIN.acc
        return acc.affine(y, self.gamma_in(acc), self.beta(), x.dtype)

    def counted(self, seen: RangeCounts) -> RangeCounts:
        """What of its range counts reaches an output: all of it, unless the type knows better."""
        return seen

    @property
    def eps_form(self) -> EpsForm:
        """Where ε stands."""
        return EpsForm(getattr(self.config, "eps_form", EpsForm.UNDER))

    def least_rms(self) -> float:
        """The RMS at which ε begins to rule a row: √ε, or ε itself where it stands at the root."""
        return self.eps_form.least_rms(float(getattr(self.config, "eps", 0.0)))

    @property
    def centres(self) -> bool:
        """Whether the statistic is that of x − μ."""
        return self.centred_statistic and bool(getattr(self.config, "center", False))

    def summed(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch n e"]:
        """The rows whose squares the statistic adds up: x (x − μ), a part of it, or each group."""
        return (x - jnp.mean(x, axis=-1, keepdims=True) if self.centres else x)[..., None, :]

    def penalty(self) -> Float[Array, ""] | None:
        """What the norm adds to the training loss for the rows it just saw in training; or None."""
        return None

    def fold(self) -> tuple[Float[Array, " d"], Float[Array, " d"]] | None:
        """(a, b) where the norm as it stands is the map x ↦ a ⊙ x + b outside training; or None."""
        return None

    @classmethod
    def check_steps(cls, config: Any, steps: int) -> None:
        """Raise `ValueError` where a training of so many steps is too short for the type."""


def observe(
    norm: Norm, x: Float[Array, "*batch d"], context: NormContext
) -> tuple[Float[Array, "*batch d"], RangeCounts]:
    """The norm's rows, the same bits as without, and what its precision made of their sums."""
    recorder = RangeRecorder(context.acc.datapath, context.acc.scale)
    y = norm(x, dataclasses.replace(context, acc=recorder))
    return y, norm.counted(recorder.counts())


def check_sums(norm: Norm) -> None:
    """Refuse a norm that has a statistic, as its class says, and accumulates none.

    Raises:
        ValueError: no precision would apply to it.
    """
    if norm.has_statistic:
        rows = jnp.ones((1, norm.width), jnp.float32)
        _, seen = observe(norm, rows, PLAIN)
        if int(seen.rows) <= 0:
            raise nothing_summed(norm)


def nothing_summed(norm: Norm) -> ValueError:
    """The error for a norm whose statistic no accumulator has seen."""
    return ValueError(
        f"norm {norm.config.type!r} accumulated nothing through `context.acc` at "
        f"{norm.site.name}, so no precision applies to it: set has_statistic = False in its "
        "class, or use it"
    )


def all_norms(model: nnx.Module) -> list[Norm]:
    """Every norm of a model, in the order of `nnx.iter_graph`, which takes far longer."""
    found = dict[int, Norm]()

    def walk(node: object) -> None:
        named = sorted(vars(node).items())
        for part in node if isinstance(node, nnx.List) else (part for _, part in named):
            if isinstance(part, nnx.Pytree):
                walk(part)
        if isinstance(node, Norm):
            found.setdefault(id(node), node)

    walk(model)
    return list(found.values())


def penalties(model: nnx.Module) -> list[Float[Array, ""]]:
    """What the norms of a model add to its training loss, after a forward pass in training."""
    return [found for norm in all_norms(model) if (found := norm.penalty()) is not None]
