"""A norm that is there at the start of training and gone at its end."""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

from normlab.config import field, require
from normlab.norms import reference as ref
from normlab.norms.base import Norm, NormConfig, NormState, Site, norms
from normlab.norms.context import PLAIN, NormContext
from normlab.numerics import RangeCounts
from normlab.registry import MethodCard


@dataclass(frozen=True)
class TaperNormConfig(NormConfig):
    """How a TaperNorm computes, and when it fades."""

    type: str = field("tapernorm", "norm type, a registered name (set by norm=NAME)")
    eps: float = field(1e-5, "ε, added to the mean square under the root")
    start: float = field(0.1, "share of the training in which the gate is 1 and c is measured")
    end: float = field(0.8, "share of the steps after which the gate is 0 (some must be left)")
    ema: float = field(
        0.05, "share of a step (of each of `accumulate` parts) in the running means after c"
    )
    use_weight: bool = field(True, "multiply by a learned weight γ ∈ R^d, initially 1")
    keep_final: bool = field(
        True, "a norm before the head never fades: it anchors the logits (post-norm has none)"
    )
    anchor: float | None = field(
        None, "λ of the loss that holds the rows before norm_final at their size; null: none"
    )

    def __post_init__(self) -> None:
        require(self.eps >= 0, f"norm.eps = {self.eps}: expected a number ≥ 0, such as 1e-5")
        require(
            0 < self.start < self.end < 1,
            f"norm.start = {self.start}, norm.end = {self.end}: expected 0 < start < end < 1, so "
            "that c is measured first and the gate is exactly 0 at last",
        )
        require(0 < self.ema <= 1, f"norm.ema = {self.ema}: expected 0 < share ≤ 1, such as 0.05")
        require(
            self.anchor is None or self.anchor > 0,
            f"norm.anchor = {self.anchor}: expected a number > 0, such as 0.01, or null",
        )


@norms.register("tapernorm")
class TaperNorm(Norm):
    """TaperNorm (Kanavalau, Amo Alonso, Lall 2026, arXiv:2602.10408), over an RMSNorm.

    y = g · x/r ⊙ γ + (1 − g) · c · x ⊙ (γ + δ), with r = √(mean x² + ε). The gate g is 1 in the
    first share of the training, falls along a cosine, and is exactly 0 from `end` on. The norm is
    then the linear map that `fold` gives. The least-squares factor c makes c·x⊙γ nearest to x/r⊙γ,
    E[‖x⊙γ‖²/r] / E[‖x⊙γ‖²], of running means taken while g is 1. The linear map has a weight of its
    own, γ + δ: δ gets no gradient while g is 1, so the two start apart from the same γ.

    The gate and c are those of the last step of training; outside training they stand still. At
    gate 0 the statistic reaches no output, so none of its sums is counted as out of range.

    Without a norm before the head (`keep_final=False`) cross-entropy makes its rows ever longer.
    `anchor` is the paper's other remedy, with the norm or without. From the end of the first share
    on, λ·E[(r − r₀)²] of the rows before the head joins the training loss. Its r₀ is the mean of r
    over the first share, by a running mean whose start at 0 is made good.
    """

    Config: ClassVar[type[NormConfig]] = TaperNormConfig
    affine_last: ClassVar[bool] = False
    unit_rows: ClassVar[bool] = False
    card: ClassVar[MethodCard] = MethodCard(
        title="TaperNorm",
        formula="y = g · x/r ⊙ γ + (1 − g) · c · x ⊙ γ̃, r = √(mean x² + ε), g from 1 to 0; with "
        "anchor: loss + λ E[(r − r₀)²] before the head",
        source="Kanavalau, Amo Alonso, Lall 2026, arXiv:2602.10408, abstract; unconfirmed: the "
        "formulas of c and of the loss (two summaries of the paper agree), λ, the rate of the "
        "running means and the shares of the schedule",
        property="at g = 1 it is RMSNorm bit for bit; at the end g is exactly 0 and it is linear",
        test="tests/norms/test_taper.py::test_it_goes_from_rmsnorm_to_a_linear_map",
    )

    def __init__(self, width: int, site: Site, config: Any):
        super().__init__(width, site, config)
        self.delta = nnx.Param(jnp.zeros(width))
        self.gate = NormState(jnp.float32(1))
        self.scaled_square = NormState(jnp.float32(0))  # E[‖x⊙γ‖²/r]
        self.square = NormState(jnp.float32(0))  # E[‖x⊙γ‖²]
        self.anchored = config.anchor is not None and site.kind == "norm_final"
        if self.anchored:
            self.size = NormState(jnp.float32(0))  # E[r]
            self.seen = NormState(jnp.float32(0))  # E[1], which starts at 0 as E[r] does
            self.pull = NormState(jnp.float32(0))  # λ·E[(r − r₀)²] of the last rows

    @staticmethod
    def reference(x: ref.Rows, config: Any, params: ref.Params) -> ref.Rows:
        """The formula in float64."""
        weight = params.get("weight", np.ones(1))
        factor = params["scaled_square"] / max(params["square"], 1e-300)
        linear = factor * x * (weight + params["delta"])
        return params["gate"] * ref.over_rms(x, config) * weight + (1 - params["gate"]) * linear

    def __call__(
        self, x: Float[Array, "*batch d"], context: NormContext = PLAIN
    ) -> Float[Array, "*batch d"]:
        """Shape and dtype of `x`, by the gate and the c that training left.

        In training after the gate has moved, and c with it while the gate is 1.
        """
        wide = context.acc.widened(x)
        y = context.acc.normalize(x, self.config.eps)
        if context.progress is not None:
            self._learn(wide, y, context.progress)
        gate, gain_linear = self.gate[...], self._gains()[1]
        linear = wide * (self.factor() * gain_linear)
        y = jnp.where(gate > 0, y, 0.0)  # which may be no number where its sum overflowed
        acc = context.acc
        normed = acc.weighted(y, self.gamma_in(acc))
        mixed = acc.apart(gate * normed) + acc.apart((1.0 - gate) * linear)
        return acc.affine(mixed, None, None, x.dtype)

    def _learn(self, wide: Array, y: Array, progress: Array) -> None:
        """Move the gate and, while it is 1, the running means after c."""
        warm = progress < self.config.start
        if self.anchored:
            self._hold(wide, warm)
        if self.config.keep_final and self.site.kind == "norm_final":
            return
        self._measure(lax.stop_gradient(wide), lax.stop_gradient(y), warm)
        self.gate[...] = self._gate_at(progress)

    def penalty(self) -> Float[Array, ""] | None:
        """λ·E[(r − r₀)²] of the rows before the head, 0 in the first share; None elsewhere."""
        return self.pull[...] if self.anchored else None

    @classmethod
    def check_steps(cls, config: Any, steps: int) -> None:
        """The gate is that of the last step, which begins at (steps − 1)/steps of the training."""
        require(
            (steps - 1) / steps >= config.end,
            f"norm.end = {config.end}: no step of {steps} begins there, so the gate would never be "
            f"0; expected at most {(steps - 1) / steps:.4g}",
        )

    def factor(self) -> Float[Array, ""]:
        """c; 0 before it is known, when the gate is 1."""
        known = self.square[...] > 0
        return jnp.where(known, self.scaled_square[...] / jnp.where(known, self.square[...], 1), 0)

    def fold(self) -> tuple[Float[Array, " d"], Float[Array, " d"]] | None:
        """(c·(γ + δ), 0) where the gate is 0."""
        if float(self.gate[...]) != 0.0:
            return None
        return self.factor() * self._gains()[1], jnp.zeros(self.width)

    def _gains(self) -> tuple[Array | float, Array]:
        """γ and γ + δ."""
        gamma = self.gamma()
        constant = 1.0 if gamma is None else gamma
        return constant, constant + self.delta[...]

    def counted(self, seen: RangeCounts) -> RangeCounts:
        """What was seen of the rows; of what the sums made of them nothing, if the gate is 0."""
        rows = ("rows", "max_abs", "max_square", "squares", "sums", "stages")
        idle = dataclasses.replace(RangeCounts.nothing(), **{f: getattr(seen, f) for f in rows})
        return jax.tree.map(partial(jnp.where, self.gate[...] > 0), seen, idle)

    def _gate_at(self, progress: Array) -> Array:
        c = self.config
        fall = jnp.clip((progress - c.start) / (c.end - c.start), 0.0, 1.0)
        return jnp.where(fall < 1.0, 0.5 * (1.0 + jnp.cos(math.pi * fall)), 0.0)

    def _measure(self, x: Array, y: Array, warm: Array) -> None:
        """Move both running means towards this batch; y is x/r, so ⟨xΓ, yΓ⟩ is ‖xΓ‖²/r."""
        squared = self._gains()[0] ** 2
        for state, rows in ((self.scaled_square, x * y), (self.square, x * x)):
            now = jnp.mean(jnp.sum(rows * lax.stop_gradient(squared), axis=-1))
            self._follow(state, now, warm)

    def _follow(self, state: NormState, now: Array | float, warm: Array) -> None:
        """Move a running mean towards what is now, while the training is in its first share."""
        moved = state[...] + self.config.ema * (now - state[...])
        state[...] = jnp.where(warm, moved, state[...])

    def _hold(self, x: Array, warm: Array) -> None:
        """Learn the size of the rows before the head; later, say how far they are from it."""
        size = jnp.sqrt(jnp.mean(x * x, axis=-1) + self.config.eps)
        self._follow(self.size, lax.stop_gradient(jnp.mean(size)), warm)
        self._follow(self.seen, 1.0, warm)
        target = self.size[...] / jnp.maximum(self.seen[...], jnp.finfo(jnp.float32).tiny)
        held = self.config.anchor * jnp.mean(jnp.square(size - target))
        self.pull[...] = jnp.where(warm, 0.0, held)
