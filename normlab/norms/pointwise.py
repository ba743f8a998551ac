"""Norms that bound each element, and no norm at all."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.scipy.special import erf
from jaxtyping import Array, Float

from normlab.config import field, require
from normlab.norms import reference as ref
from normlab.norms.around import Around
from normlab.norms.base import Norm, NormConfig, OutsideBlockError, Site, norms
from normlab.norms.context import PLAIN, NormContext
from normlab.registry import MethodCard, choice

_WIDTHS = (1024, 2048, 4096, 8192)
_ALPHA_ATTENTION = (1.0, 1.0, 0.8, 0.2)
_ALPHA_OTHER = (1.0, 0.5, 0.2, 0.05)


def dyt_alpha(width: int, site: Site) -> float:
    """DyT's initial α for a language model of this width at this site.

    The paper's table (arXiv:2503.10622, section 7) gives it for four widths, apart for attention's
    inputs and for the rest (MLP and final norm). Between two of them we take the line in
    log₂(width), which also meets the paper's value for 13B (width 5,120: 0.6 and 0.15); outside
    them the nearest.
    """
    table = _ALPHA_ATTENTION if site.branch == "attention" else _ALPHA_OTHER
    return float(np.interp(math.log2(width), np.log2(_WIDTHS), table))


@dataclass(frozen=True)
class DyTConfig(NormConfig):
    """How a DyT starts."""

    type: str = field("dyt", "norm type, a registered name (set by norm=NAME)")
    alpha: float | None = field(
        None, "initial α; null takes the paper's, by width and site", initial=True
    )
    use_weight: bool = field(True, "multiply by a learned weight γ ∈ R^d, initially 1")
    bias: bool = field(False, "add a learned β ∈ R^d, initially 0 (the paper's LLaMA has none)")
    embed_scale: bool = field(True, "multiply the embedding by a learned scalar, initially √d")

    def __post_init__(self) -> None:
        require(
            self.alpha is None or self.alpha > 0,
            f"norm.alpha = {self.alpha}: expected a number > 0, or null for the paper's rule",
        )


@norms.register("dyt")
class DyT(Norm):
    """Dynamic tanh (Zhu et al. 2025, arXiv:2503.10622, Eq. 2): y = γ ⊙ tanh(αx) + β.

    α is one learned scalar for each site. For language models the paper also multiplies the
    embedding's output by a learned scalar that starts at √d. Nothing is accumulated. Norms of
    queries and keys, where a placement has them, are DyT too; the paper leaves those as they were.
    """

    Config: ClassVar[type[NormConfig]] = DyTConfig
    has_statistic: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="DyT",
        formula="y = γ ⊙ tanh(αx) + β, α a scalar",
        source="Zhu et al. 2025, arXiv:2503.10622, Eq. 2; initial values of section 7",
        property="is odd (β = 0), within |γ| + |β|, and each element knows only its own input",
        test="tests/norms/test_walk.py::test_dyt_is_odd_bounded_and_elementwise",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        alpha = dyt_alpha(width, site) if config.alpha is None else config.alpha
        self.alpha = nnx.Param(jnp.float32(alpha))

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        return ref.affine(np.tanh(params["alpha"] * x), config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`; no sum is accumulated."""
        return self.affine(jnp.tanh(self.alpha[...] * x), x, context)

    @classmethod
    def around(cls, config: Any, width: int, branches: int) -> Around:
        """A scalar on the embedding, initially √d, unless the config takes it away."""
        return Around(embed_scale=math.sqrt(width) if config.embed_scale else None)


@dataclass(frozen=True)
class DerfConfig(NormConfig):
    """How a Derf starts."""

    type: str = field("derf", "norm type, a registered name (set by norm=NAME)")
    alpha: float = field(1.0, "initial α (that of the authors' language model)", initial=True)
    shift: float = field(0.0, "initial s", initial=True)
    use_weight: bool = field(True, "multiply by a learned weight γ ∈ R^d, initially 1")
    bias: bool = field(False, "add a learned β ∈ R^d, initially 0")
    embed_scale: bool = field(True, "multiply the embedding by a learned scalar, initially √d")

    def __post_init__(self) -> None:
        require(self.alpha > 0, f"norm.alpha = {self.alpha}: expected a number > 0, such as 1")


@norms.register("derf")
class Derf(Norm):
    """Dynamic erf (Chen et al. 2025, arXiv:2512.10938): y = γ ⊙ erf(αx + s) + β.

    α and s are learned scalars, one of each for each site, and the embedding is multiplied by a
    learned scalar that starts at √d. Nothing is accumulated. The authors' patch for GPT-2
    (zlab-princeton/Derf) starts α at 1; what their published runs used is not in it.
    """

    Config: ClassVar[type[NormConfig]] = DerfConfig
    has_statistic: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="Derf",
        formula="y = γ ⊙ erf(αx + s) + β, α and s scalars",
        source="arXiv:2512.10938; zlab-princeton/Derf, language model/model_derf.patch; "
        "unconfirmed: α of the published language models",
        property="within |γ| + |β|, elementwise, and of slope 2γα/√π where αx + s = 0",
        test="tests/norms/test_pointwise.py::test_derf_is_bounded_and_elementwise",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        self.alpha = nnx.Param(jnp.float32(config.alpha))
        self.shift = nnx.Param(jnp.float32(config.shift))

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        y = np.vectorize(math.erf)(params["alpha"] * x + params["shift"])
        return ref.affine(y, config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`; no sum is accumulated."""
        return self.affine(erf(self.alpha[...] * x + self.shift[...]), x, context)

    @classmethod
    def around(cls, config: Any, width: int, branches: int) -> Around:
        """A scalar on the embedding, initially √d, unless the config takes it away."""
        return Around(embed_scale=math.sqrt(width) if config.embed_scale else None)


@dataclass(frozen=True)
class BHyTConfig(NormConfig):
    """How a BHyT computes and starts."""

    type: str = field("bhyt", "norm type, a registered name (set by norm=NAME)")
    eps: float = field(1e-6, "ε, added to the mean square under the root")
    lam: float = field(1.0, "initial λ", initial=True)
    kappa: float = field(10.0, "κ: no more than a share κ⁻² of a row has |x| > κ·√(mean x²)")
    use_weight: bool = field(True, "multiply by a learned weight γ ∈ R^d, initially 1")
    keep_final: bool = field(
        True, "a norm before the head is an RMSNorm, as the authors have it (post-norm has none)"
    )

    def __post_init__(self) -> None:
        require(self.eps >= 0, f"norm.eps = {self.eps}: expected a number ≥ 0, such as 1e-6")
        for name in ("lam", "kappa"):
            value = getattr(self, name)
            require(value > 0, f"norm.{name} = {value}: expected a number > 0")


@norms.register("bhyt")
class BHyT(Norm):
    """Bounded hyperbolic tanh (2026, arXiv:2601.09719): y = γ ⊙ tanh(λx / (κ·√(mean x² + ε))).

    λ is a learned scalar for each site. By Chebyshev's inequality at most a share κ⁻² of the row
    has an argument beyond λ. Every site takes its own statistic, as the authors' `BHyT_Star` does
    (MLAI-Yonsei/BHyT). Their cheaper form is `bhyt-estimated`.

    Before the head stands an RMSNorm. In their modeling_llama.py that is so for `BHyT_Star` always
    (line 1277 compares the type with a list, which is never true). For the cheaper form it is so
    where `last_layer_lam` is 0: in the script that pretrains it (pt_bhyt_sweep.sh) and in the
    examples. Their other scripts try 0 to 5 there; `keep_final=False` puts the tanh there too.
    """

    Config: ClassVar[type[NormConfig]] = BHyTConfig
    card: ClassVar[MethodCard] = MethodCard(
        title="BHyT",
        formula="y = γ ⊙ tanh(λ x / (κ √(mean x² + ε))), λ a scalar; before the head RMSNorm",
        source="arXiv:2601.09719; MLAI-Yonsei/BHyT, modeling_llama.py, class BHyT_Star; "
        "unconfirmed: λ = 1 at the start (an argument in the code, whose sweeps try 1 to 5)",
        property="at ε = 0 it ignores the size of the row; a share of at most κ⁻² of a row has an "
        "argument beyond λ",
        test="tests/norms/test_pointwise.py::test_bhyt_ignores_size_and_obeys_chebyshev",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        plain = config.keep_final and site.kind == "norm_final"
        self.lam = None if plain else nnx.Param(jnp.float32(config.lam))

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        y = np.tanh(params["lam"] / config.kappa * ref.over_rms(x, config))
        return ref.affine(y, config, params)

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        return self.affine(self._bounded(context.acc.normalize(x, self.config.eps)), x, context)

    def _bounded(self, y: Array) -> Array:
        """tanh(λy/κ); y itself where the norm is an RMSNorm."""
        return y if self.lam is None else jnp.tanh(y * (self.lam[...] / self.config.kappa))


@dataclass(frozen=True)
class EstimatedBHyTConfig(BHyTConfig):
    """How a BHyT computes and starts, whose second site in a block is estimated."""

    type: str = field("bhyt-estimated", "norm type, a registered name (set by norm=NAME)")


@norms.register("bhyt-estimated")
class EstimatedBHyT(BHyT):
    """BHyT with one statistic a block (2026, arXiv:2601.09719): the MLP's is estimated.

    Before the MLP y = γ ⊙ tanh(λ₂x / (κ·√(m + ε))), and m, in place of the row's own mean square,
    is s² + λ²/κ² · ‖W_V W_O‖_F² / (T·d). Here s² is attention's own mean square, λ that of
    attention's norm, T the length of the sequence. The second term is what attention adds to a row,
    if its T values count alike and γ is left out of account. No gradient goes through it.
    Everywhere else it is `bhyt`. It needs placement=pre, where attention adds to the row that it
    read.

    The authors take W_V W_O anew every so many steps, here it is that of the step.
    """

    Config: ClassVar[type[NormConfig]] = EstimatedBHyTConfig
    affine_last: ClassVar[bool] = False  # γ folded into W_V would change the estimate
    card: ClassVar[MethodCard] = MethodCard(
        title="BHyT, one statistic a block",
        formula="before the MLP: y = γ ⊙ tanh(λ x / (κ √(s² + λ₁²‖W_V W_O‖_F²/(κ²Td) + ε))), s and "
        "λ₁ of the block's first norm",
        source="arXiv:2601.09719; MLAI-Yonsei/BHyT, modeling_llama.py, LayerWiseVarApprox and "
        "update_scaler",
        property="where attention averages uncorrelated values evenly, the estimate is the mean "
        "square of the sum",
        test="tests/norms/test_pointwise.py::test_the_estimate_is_the_sums_mean_square",
    )

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`."""
        if self.site.branch != "mlp" or self.site.kind != "norm_in":
            return super().__call__(x, context)
        if context.entered is None:
            raise OutsideBlockError(f"{self.site.name} can't be estimated outside its block")
        acc, (rows, attention) = context.acc, context.entered
        _, mean_square = acc.moments(rows)
        scaled = acc.held(acc.widened(x) / acc.scale)
        estimate = mean_square + self._added(attention, x.shape[-2]) / acc.scale**2
        y = self._bounded(acc.over_rms(scaled, estimate, self.config.eps))
        return self.affine(y, x, context)

    def _added(self, attention: Any, tokens: int) -> Float[Array, ""]:
        """The mean square of what attention adds to a row."""
        c, lam = attention.branch.config, attention.norm_in.lam[...]
        value, out = (m.kernel[...] for m in (attention.branch.value, attention.branch.out))
        by_head = value.reshape(self.width, c.kv, c.head_size)
        wide = jnp.repeat(by_head, c.heads // c.kv, axis=1).reshape(self.width, -1)
        square = jnp.sum((wide.T @ wide) * (out @ out.T))  # ‖W_V W_O‖_F² by the smaller matrices
        share = square * jnp.square(lam / self.config.kappa) / (tokens * self.width)
        return lax.stop_gradient(share)


METHODS = ("rezero", "skipinit", "fixup", "tfixup")


@dataclass(frozen=True)
class NoneConfig(NormConfig):
    """How a transformer without norms starts."""

    type: str = field("none", "norm type, a registered name (set by norm=NAME)")
    method: str = field("rezero", f"what makes it trainable: {', '.join(METHODS)}", initial=True)
    branch_gain: float | None = field(
        None,
        "initial value of the learned scalar on each residual branch; null: the method's",
        initial=True,
    )

    def __post_init__(self) -> None:
        choice("norm.method", self.method, METHODS)


@norms.register("none")
class NoNorm(Norm):
    """No norm: y = x at every site, the final one too; and what makes that trainable.

    A learned scalar g on each residual branch, x + g·F(x), and how it starts:
    - `rezero` (Bachlechner et al. 2020, arXiv:2003.04887, Eq. 3): at 0. At the start the stream is
      the embedding, every branch is silent whatever its size, and g is the first to learn.
    - `skipinit` (De and Smith 2020, arXiv:2002.10444): at 1/√L for L branches, which keeps the
      stream's variance finite at any depth (unconfirmed: read in a review of the paper). It is in
      the place of GPT-2's smaller output maps, whose division by √L is taken back. Its other start,
      0, is `rezero`.
    - `fixup` (Zhang, Dauphin, Ma 2019, arXiv:1901.09321): at 1. The last matrix of each branch and
      a head of its own start at 0, the others are scaled by L^(−1/(2m−2)) for L branches of m
      matrices each. As in the authors' transformer (hongyi-zhang/Fixup, fairseq), m is 4 in
      attention, 2 in the MLP (theirs has no gate). Each site adds a learned scalar, initially 0, in
      place of its norm. Biases inside a branch are the model's (`model.bias`).
    - `tfixup` (Huang, Pérez, Ba, Volkovs 2020, ICML): no g and nothing else that learns. Values,
      output map and MLP start 0.67·N^(−1/4) as large in N blocks, the embedding (9N)^(−1/4), and it
      is multiplied by √d. 0.67 is the paper's for its encoder, whose blocks have two branches as
      ours have (its decoder's, with three, start (9N)^(−1/4) as large). GPT-2's division of output
      maps by √(2N) is taken back, where the placement does it. Here √d is the start of a learned
      scalar, and the weights that are made smaller are the model's own (`model.init_std`), not
      Xavier's.

    With `branch_gain=1` it is a plain transformer with its norms taken out, which needs a small
    step.
    """

    Config: ClassVar[type[NormConfig]] = NoneConfig
    has_statistic: ClassVar[bool] = False
    unit_rows: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="none (ReZero, SkipInit, Fixup, T-Fixup)",
        formula="y = x; stream x + g·F(x), g a scalar for each branch, initially 0, 1/√L or 1, or "
        "none and smaller weights",
        source="Bachlechner et al. 2020, arXiv:2003.04887, Eq. 3; De and Smith 2020, "
        "arXiv:2002.10444, unconfirmed: its start 1/√L; Zhang, Dauphin, Ma 2019, arXiv:1901.09321, "
        "and hongyi-zhang/Fixup, transformer_zero.py; Huang et al. 2020 (ICML), "
        "layer6ai-labs/T-Fixup, transformer_layer.py",
        property="with ReZero and Fixup every block is the identity at the start",
        test="tests/norms/test_pointwise.py::test_without_norms_blocks_start_as_the_identity",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        self.shift = nnx.Param(jnp.float32(0)) if config.method == "fixup" else None

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        return x + params.get("shift", np.zeros(1))

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """`x` itself, in Fixup with a scalar added."""
        shift = None if self.shift is None else self.shift[...]
        return PLAIN.acc.affine(x, None, shift, x.dtype)

    def fold(self) -> tuple[Float[Array, " d"], Float[Array, " d"]] | None:
        """Fixup's scalar as (1, b)."""
        if self.shift is None:
            return None
        return jnp.ones(self.width), jnp.full(self.width, self.shift[...])

    @classmethod
    def around(cls, config: Any, width: int, branches: int) -> Around:
        """The method's scalars and initial weights; the config may have another `branch_gain`."""
        made = _METHODS[config.method](width, branches)
        given = made.branch_gain if config.branch_gain is None else config.branch_gain
        return dataclasses.replace(made, branch_gain=given)


def _fixup(width: int, branches: int) -> Around:
    """Rules 1 and 2 of the paper."""
    inner, mlp = (branches ** (-1 / (2 * m - 2)) for m in (4, 2))
    factors = dict.fromkeys(("query", "key", "value"), inner) | dict.fromkeys(("gate", "up"), mlp)
    return Around(branch_gain=1.0, factors=factors | dict.fromkeys(("out", "down", "head"), 0.0))


def _tfixup(width: int, branches: int) -> Around:
    blocks = branches / 2
    factors = dict.fromkeys(("value", "out", "gate", "up", "down"), 0.67 * blocks**-0.25)
    return Around(
        embed_scale=math.sqrt(width),
        factors=factors | {"embed": (9 * blocks) ** -0.25},
        unshrunk=branches**0.5,
    )


_METHODS: dict[str, Callable[[int, int], Around]] = {
    "rezero": lambda width, branches: Around(branch_gain=0.0),
    "skipinit": lambda width, branches: Around(branch_gain=branches**-0.5, unshrunk=branches**0.5),
    "fixup": _fixup,
    "tfixup": _tfixup,
}
