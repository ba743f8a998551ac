"""What a forward pass is told beside its tokens, and what it writes down."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from normlab.config import require
from normlab.model.compute import ComputeConfig
from normlab.norms import Norm, NormContext, observe
from normlab.numerics import Accumulator, Arithmetic, FloatFormat, RangeCounts, arithmetic
from normlab.numerics.formats import round_to
from normlab.numerics.stage_counts import StageCounts
from normlab.parallel.sharding import whole_rows


class Stored(NamedTuple):
    """Of one tensor: of each token its largest |x| and its elements beyond the edge; its width."""

    size: Float[Array, "b l"]
    over: Int[Array, "b l"]
    width: int


class Context:
    """One forward pass's instructions to its norms and dropouts, and its records.

    Made inside the traced function and thrown away with it: it is mutable, and what it holds after
    the pass are tracers. The model's weights know nothing of it, so a model runs in another
    precision without being rebuilt.

    Args:
        precision: in which every norm accumulates its statistic, or its string; by default that of
            `compute`. A rule in it is refused without `scales`.
        scales: scale by site name (see `normlab.scaling`); a site that is missing has scale 1;
            the model refuses a name that none of its sites has.
        observe: count rows out of range and keep the largest values, by site, in `observed`.
        edge: keep the size of every tensor that a runtime stores, by name and in forward order, in
            `stored`, and how much of it is beyond this number.
        activations: round every tensor that a half-precision runtime stores to this format;
            products accumulate in float32. The weights are the model's own: see
            `normlab.model.half`.
        keep_fp32: by site, whether its norm computes in float32 all the same, without a scale: a
            bool, or a traced one, so that one program serves every choice.
        capture: keep every norm's input, by site, in `inputs`. Keep the residual stream before the
            first block and after each one in `streams`, and each block's largest attention score in
            `scores`.
        dropout_key: without one, nothing is dropped.
        progress: the share of the training that is done, a float32 scalar; None outside training.
            With one, norms may update their state.
        compute: dtype of the branches, precision, kernels, rematerialization.
    """

    def __init__(
        self,
        precision: str | Arithmetic | None = None,
        scales: Mapping[str, Any] | None = None,
        *,
        observe: bool = False,
        edge: float | None = None,
        activations: FloatFormat | None = None,
        keep_fp32: Mapping[str, Bool[Array, ""]] | None = None,
        capture: bool = False,
        dropout_key: jax.Array | None = None,
        progress: Float[Array, ""] | None = None,
        compute: ComputeConfig | None = None,
    ):
        self.scales = scales or {}
        self.observe = observe
        self.edge = edge
        self.activations = activations
        self.keep_fp32 = keep_fp32 or {}
        self.stored: dict[str, Stored] = {}
        self.path = ""  # of the sublayer that is running
        self.capture = capture
        self.progress = progress
        self.compute = compute or ComputeConfig()
        told = self.compute.precision if precision is None else precision
        self.precision = arithmetic(told)
        self.observed: dict[str, RangeCounts] = {}
        self.inputs: dict[str, Array] = {}
        self.entered: Any = None  # the rows that entered the block, and its attention
        self.streams: list[Array] = []
        self.scores: list[Array] = []
        self._dropout_key = dropout_key
        self.drops: Any = 0  # how often something was dropped: a number, or traced in a loop

    def norm(self, norm: Norm | None, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """`norm(x)` as this pass wants it; `x` where the placement has no norm at the site.

        A norm never sees rows narrower than float32; what comes narrower leaves as it came.
        """
        if norm is None:
            return x
        name, came = norm.site.name, x.dtype
        x = whole_rows(x).astype(jnp.promote_types(came, jnp.float32))
        if self.capture:
            self.inputs[name] = x
        if self.edge is not None and norm.has_statistic:
            self._store(f"{name}.sum", jnp.sum(jnp.square(norm.summed(x)), axis=-1))
        scale: Any = self.scales.get(name, 1.0)
        if callable(scale):  # a dynamic rule: rows [*batch d] to their scales [*batch 1]
            scale = scale(x)
        told = NormContext(Accumulator(self.precision, scale), self.entered, self.progress)
        y = self._called(norm, x, told)
        if name in self.keep_fp32 and norm.has_statistic:
            y = self._unless_kept(norm, x, told, y)
        require(
            y.shape[:-1] == x.shape[:-1],  # a deferred norm adds an element to each row
            f"norm {norm.config.type!r} at {name} returned rows of shape {y.shape}: expected "
            f"{x.shape}, as they came",
        )
        return self.stores(name, y.astype(came))

    def _called(self, norm: Norm, x: Array, told: NormContext) -> Array:
        if not self.observe or not norm.has_statistic:
            return norm(x, told)
        y, seen = observe(norm, x, told)
        self.observed[norm.site.name] = seen.with_input(x, self.activations or self.precision.row)
        return y

    def _unless_kept(self, norm: Norm, x: Array, told: NormContext, y: Array) -> Array:
        """`y` and its range counts, or those of float32 where the site is kept in it."""
        name = norm.site.name
        kept, seen = self.keep_fp32[name], self.observed.get(name)
        wide = self._called(norm, x, replace(told, acc=Accumulator()))
        if seen is not None:
            stages = {stage: StageCounts.nothing() for stage in seen.stages}
            plain = replace(self.observed[name], stages=stages)
            self.observed[name] = jax.tree.map(partial(jnp.where, kept), plain, seen)
        return jnp.where(kept, wide, y)

    def stores(self, name: str, x: Float[Array, "b l ..."]) -> Float[Array, "b l ..."]:
        """What a runtime stores, as it holds it; `.name` is a tensor of the running sublayer."""
        x = self.holds(x)
        if self.edge is not None:
            self._store(f"{self.path}{name}" if name.startswith(".") else name, x)
        return x

    @property
    def stores_nothing(self) -> bool:
        """Whether `stores` is the identity."""
        return self.activations is None and self.edge is None

    def holds(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """`x` in the format of the activations; itself without one."""
        return x if self.activations is None else round_to(x, self.activations)

    def _store(self, name: str, x: Array) -> None:
        assert self.edge is not None
        size = jnp.abs(x.astype(jnp.float32)).reshape(*x.shape[:2], -1)
        over = jnp.sum(~(size <= self.edge), axis=-1)
        self.stored[name] = Stored(jnp.max(size, axis=-1), over, size.shape[-1])

    def enters(self, x: Float[Array, "b l d"], attention: Any) -> None:
        """Told by a block of the rows that enter it, and of its attention; for `entered`."""
        self.entered = x, attention

    def stream(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """`x` itself, the residual stream between two blocks."""
        if self.capture:
            self.streams.append(x)
        return x

    def attends(
        self,
        q: Float[Array, "b l h k"],
        k: Float[Array, "b l g k"],
        scale: float,
        mask: Bool[Array, "l l"],
    ) -> None:
        """Told by a block of the queries and keys that it attends with; for `scores`, `stored`."""
        if not self.capture and self.edge is None:
            return
        k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
        products = jnp.where(mask[:, None], jnp.abs(jnp.einsum("bqhk,bshk->bqhs", q, k)), 0.0)
        if self.capture:
            self.scores.append((scale * products).max())
        if self.edge is not None and self.activations is None:  # else they are stored
            self.stores(".products", products)
            self.stores(".scores", scale * products)

    def dropout(self, x: Array, rate: float) -> Array:
        """Drop elements with probability `rate` and scale the others by 1 / (1 − rate)."""
        if self._dropout_key is None or rate == 0.0:
            return x
        key = jax.random.fold_in(self._dropout_key, self.drops)
        self.drops += 1
        return jnp.where(jax.random.bernoulli(key, 1.0 - rate, x.shape), x / (1.0 - rate), 0.0)
