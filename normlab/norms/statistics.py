"""Norms that divide a row by a statistic of it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from normlab.config import field, require
from normlab.norms import reference as ref
from normlab.norms.around import Around
from normlab.norms.base import Norm, NormConfig, Site, check_divides, norms
from normlab.norms.context import PLAIN, NormContext
from normlab.numerics.eps import EpsForm
from normlab.registry import MethodCard, choice


@dataclass(frozen=True)
class LayerNormConfig(NormConfig):
    """How a LayerNorm computes; `center`, `use_weight` and `bias` are independent of each other."""

    type: str = field("layernorm", "norm type, a registered name (set by norm=NAME)")
    eps: float = field(1e-5, "ε, added to the variance under the root")
    center: bool = field(True, "subtract the row's mean before anything else")
    use_weight: bool = field(True, "multiply by a learned weight γ ∈ R^d, initially 1")
    one_plus: bool = field(False, "the weight is stored as w, γ = 1 + w (Gemma)")
    bias: bool = field(True, "add a learned bias β ∈ R^d, initially 0")

    def __post_init__(self) -> None:
        require(self.eps >= 0, f"norm.eps = {self.eps}: expected a number ≥ 0, such as 1e-5")
        require(
            self.use_weight or not self.one_plus,
            "norm.one_plus = True says how a weight is stored, but norm.use_weight = False: "
            "there is none",
        )


@dataclass(frozen=True)
class ExactLayerNormConfig(LayerNormConfig):
    """How a LayerNorm computes, and where its ε stands."""

    eps_form: str = field("under", "where ε stands: under the root, added to it, or floor of it")

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("norm.eps_form", self.eps_form, EpsForm)


@dataclass(frozen=True)
class RMSNormConfig(ExactLayerNormConfig):
    """How an RMSNorm computes: a LayerNorm that neither centres nor shifts."""

    type: str = field("rmsnorm", "norm type, a registered name (set by norm=NAME)")
    center: bool = field(False, "subtract the row's mean before anything else")
    bias: bool = field(False, "add a learned bias β ∈ R^d, initially 0")


@norms.register("layernorm")
class LayerNorm(Norm):
    """LayerNorm (Ba, Kiros, Hinton 2016, arXiv:1607.06450, Eqs. 3-4).

    y = (x − μ) / √(σ² + ε) ⊙ γ + β, with μ and σ² the mean and the biased variance of the row.
    With `center=False`, μ is 0 throughout: RMSNorm's formula.

    In a low precision with a static scale s the statistic is that of z = x/s, and ε becomes ε/s².
    So in exact arithmetic s changes nothing (SLaNC, arXiv:2410.10553).
    """

    Config: ClassVar[type[NormConfig]] = ExactLayerNormConfig
    card: ClassVar[MethodCard] = MethodCard(
        title="LayerNorm",
        formula="y = (x − μ) / √(σ² + ε) ⊙ γ + β",
        source="Ba, Kiros, Hinton 2016, arXiv:1607.06450, Eqs. 3-4",
        property="at ε = 0 it ignores a shift of the row and any positive factor on it",
        test="tests/norms/test_walk.py::test_layernorm_ignores_shift_and_positive_scale",
    )

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        return ref.affine(ref.over_rms(ref.centred(x, config), config), config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`; the arithmetic is float32 around the statistic."""
        c = self.config
        y = context.acc.normalize(x, c.eps, center=c.center, form=self.eps_form)
        return self.affine(y, x, context)


@norms.register("rmsnorm")
class RMSNorm(LayerNorm):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4): y = x / √(mean x² + ε) ⊙ γ.

    ε stands under the root, as in the LLaMA family. The paper's own code (bzhangGo/rmsnorm) has
    x / (√(mean x²) + ε) with ε = 1e-8: `eps_form="added"`. Gemma's weight is 1 + w: `one_plus`.
    """

    Config: ClassVar[type[NormConfig]] = RMSNormConfig
    card: ClassVar[MethodCard] = MethodCard(
        title="RMSNorm",
        formula="y = x / √(mean x² + ε) ⊙ γ; also x / (√(mean x²) + ε), and γ = 1 + w",
        source="Zhang and Sennrich 2019, arXiv:1910.07467, Eq. 4; bzhangGo/rmsnorm for ε",
        property="at ε = 0 it ignores the size of the row, but not a shift",
        test="tests/norms/test_walk.py::test_rmsnorm_ignores_scale_but_not_shift",
    )


@dataclass(frozen=True)
class PartialRMSNormConfig(RMSNormConfig):
    """How a partial RMSNorm computes."""

    type: str = field("prmsnorm", "norm type, a registered name (set by norm=NAME)")
    share: float = field(0.0625, "p, the share of the row that the statistic is taken of")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.share <= 1, f"norm.share = {self.share}: expected 0 < p ≤ 1, such as 0.0625"
        )


@norms.register("prmsnorm")
class PartialRMSNorm(LayerNorm):
    """Partial RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467, section 4).

    y = x / √(mean of the first k x² + ε) ⊙ γ, with k = max(1, ⌊pd⌋). All of x is divided. Where
    the first coordinates are small the row comes out large: ‖y‖ has no bound.
    """

    Config: ClassVar[type[NormConfig]] = PartialRMSNormConfig
    unit_rows: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="pRMSNorm",
        formula="y = x / √(mean of the first ⌊pd⌋ x² + ε) ⊙ γ",
        source="Zhang and Sennrich 2019, arXiv:1910.07467, section 4; k = int(d·p) in "
        "bzhangGo/rmsnorm; unconfirmed: p = 6.25 % as the paper's value (a summary says so)",
        property="p = 1 is RMSNorm bit for bit; coordinates after the first k don't move the "
        "divisor",
        test="tests/norms/test_statistics.py::test_prmsnorm_divides_by_its_first_coordinates",
    )

    @property
    def first(self) -> int:
        """K, the coordinates that are summed."""
        return max(1, int(self.width * self.config.share))

    def summed(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch 1 k"]:
        """The first k."""
        return super().summed(x[..., : self.first])

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        part = slice(max(1, math.floor(x.shape[-1] * config.share)))
        return ref.affine(ref.over_rms(x, config, part), config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        c = self.config
        y = context.acc.normalize(x, c.eps, center=c.center, first=self.first, form=self.eps_form)
        return self.affine(y, x, context)


@dataclass(frozen=True)
class ScaleNormConfig(NormConfig):
    """How a ScaleNorm computes."""

    type: str = field("scalenorm", "norm type, a registered name (set by norm=NAME)")
    eps: float = field(1e-5, "ε, the least length that a row is divided by")

    def __post_init__(self) -> None:
        require(self.eps >= 0, f"norm.eps = {self.eps}: expected a number ≥ 0, such as 1e-5")


@norms.register("scalenorm")
class ScaleNorm(Norm):
    """ScaleNorm (Nguyen and Salazar 2019, arXiv:1910.05895): y = g · x / max(‖x‖₂, ε).

    g is one learned scalar for each site, initially √d (tnq177/transformers_without_tears). It is
    an RMSNorm with g/√d for every weight.
    """

    Config: ClassVar[type[NormConfig]] = ScaleNormConfig
    affine_last: ClassVar[bool] = False  # g is neither `weight` nor `bias`
    card: ClassVar[MethodCard] = MethodCard(
        title="ScaleNorm",
        formula="y = g · x / max(‖x‖₂, ε), g a scalar, initially √d",
        source="Nguyen and Salazar 2019, arXiv:1910.05895; initial g and ε as in "
        "tnq177/transformers_without_tears, layers.py",
        property="every row that is not tiny comes out with length |g|",
        test="tests/norms/test_statistics.py::test_scalenorm_gives_every_row_the_same_length",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        self.length = nnx.Param(jnp.float32(math.sqrt(width)))

    @property
    def eps_form(self) -> EpsForm:
        """ε is the least length."""
        return EpsForm.FLOOR

    def gamma(self) -> Float[Array, ""]:
        """g/√d: what multiplies x / √(mean x²)."""
        return self.length[...] / math.sqrt(self.width)

    def least_rms(self) -> float:
        """ε is the least length: ε/√d."""
        return float(self.config.eps) / math.sqrt(self.width)

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        length = np.sqrt((x**2).sum(-1, keepdims=True))
        return params["length"] * x / np.maximum(length, config.eps)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        y = context.acc.normalize(x, self.config.eps / math.sqrt(self.width), form=self.eps_form)
        return self.affine(y, x, context)


@dataclass(frozen=True)
class FixNormConfig(ScaleNormConfig):
    """How FixNorm and the ScaleNorms of its model compute."""

    type: str = field("fixnorm", "norm type, a registered name (set by norm=NAME)")
    embed_length: float | None = field(
        None, "initial length of the embedding rows; null: √d", initial=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.embed_length is None or self.embed_length > 0,
            f"norm.embed_length = {self.embed_length}: expected a number > 0, or null for √d",
        )


@norms.register("fixnorm")
class FixNorm(ScaleNorm):
    """FixNorm with ScaleNorm (Nguyen and Salazar 2019, arXiv:1910.05895): cosines all the way.

    Every row e of the word embedding enters as x₀ = ℓ·e/‖e‖, with one learned length ℓ, and a tied
    head scores with e/‖e‖. At every site of the placement stands a ScaleNorm; after the final one
    ‖h‖ = g, so the logits are g·cos(h, e). The authors' code keeps ℓ at √d, where ours starts.

    The paper combines the embedding of one length with LayerNorm too: `model.embed_length` gives it
    to a model of any norm type.
    """

    Config: ClassVar[type[NormConfig]] = FixNormConfig
    card: ClassVar[MethodCard] = MethodCard(
        title="FixNorm",
        formula="x₀ = ℓ · e/‖e‖; logits = h · e/‖e‖ = g · cos(h, e) after a ScaleNorm",
        source="Nguyen and Salazar 2019, arXiv:1910.05895 (after Nguyen and Chiang 2018, "
        "arXiv:1710.01329); tnq177/transformers_without_tears, model.py, where ℓ = √d is fixed",
        property="all embedding rows have one length, and tied logits are g · cos(h, e)",
        test="tests/norms/test_statistics.py::test_fixnorm_gives_cosines",
    )

    @classmethod
    def around(cls, config: Any, width: int, branches: int) -> Around:
        """One length for all embedding rows, initially √d, unless the config has another."""
        own = config.embed_length
        return Around(embed_length=math.sqrt(width) if own is None else own)


@dataclass(frozen=True)
class GroupNormConfig(NormConfig):
    """How a GroupNorm computes."""

    type: str = field("groupnorm", "norm type, a registered name (set by norm=NAME)")
    eps: float = field(1e-5, "ε, added to each group's variance under the root")
    groups: int = field(4, "G, groups of d/G channels each (the paper's 32 are for images)")
    use_weight: bool = field(True, "multiply by a learned weight γ ∈ R^d, initially 1")
    bias: bool = field(True, "add a learned bias β ∈ R^d, initially 0")

    def __post_init__(self) -> None:
        require(self.eps >= 0, f"norm.eps = {self.eps}: expected a number ≥ 0, such as 1e-5")
        require(self.groups >= 1, f"norm.groups = {self.groups}: expected a number ≥ 1, such as 4")


@norms.register("groupnorm")
class GroupNorm(Norm):
    """GroupNorm (Wu and He 2018, arXiv:1803.08494, Eqs. 1-7) over the channels of one token.

    y = (x − μ_g) / √(σ_g² + ε) ⊙ γ + β. The row falls into G parts of d/G neighbouring channels;
    each is centred and divided by its own √(σ² + ε). In images a group spans the picture too; here
    it spans no other token, which a causal model must not see.
    """

    Config: ClassVar[type[NormConfig]] = GroupNormConfig
    card: ClassVar[MethodCard] = MethodCard(
        title="GroupNorm",
        formula="y = (x − μ_g) / √(σ_g² + ε) ⊙ γ + β, g one of G groups of channels",
        source="Wu and He 2018, arXiv:1803.08494, section 3; on one token's channels",
        property="G = 1 is LayerNorm, and a factor on one group changes no other",
        test="tests/norms/test_statistics.py::test_groupnorm_is_layernorm_in_each_group",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        check_divides("norm.groups", config.groups, width, site)

    def summed(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch g e"]:
        """Each group, less its mean."""
        count = self.config.groups
        groups = x.reshape(*x.shape[:-1], count, self.width // count)
        return groups - jnp.mean(groups, axis=-1, keepdims=True)

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        parts = x.reshape(*x.shape[:-1], config.groups, -1)
        parts = ref.over_rms(parts - parts.mean(-1, keepdims=True), config)
        return ref.affine(parts.reshape(x.shape), config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        y = context.acc.normalize_groups(x, self.config.groups, self.config.eps)
        return self.affine(y, x, context)
