"""The decoder: embedding, blocks, head."""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from normlab.config import require
from normlab.model.attention import soft_cap
from normlab.model.block import Block, rematerialized, scanned
from normlab.model.config import ModelConfig
from normlab.model.context import Context
from normlab.model.keys import Keys, pinned
from normlab.model.linear import Linear, turned
from normlab.model.placement import PlacementConfig, ResidualConfig
from normlab.model.residual import learned, norm_maker, times
from normlab.model.token_model import TokenModel
from normlab.norms import NormConfig, all_norms, norms
from normlab.norms.around import Around, around
from normlab.norms.sites import NormAt, matching
from normlab.registry import choice


class Transformer(TokenModel):
    """A causal language model of one norm type and one placement.

    Its state holds parameters, and what norms keep beside them (`NormState`). Dropout keys and
    precisions come with each call (`Context`), so `nnx.split(model)` gives a structure and a pytree
    of arrays for `jax.jit`. A tied head calls the embedding; no Variable is shared.

    Args:
        config: size and shape.
        norm: type and settings of every norm.
        placement: where norms sit.
        vocab_size: rows of the embedding.
        seed: of the initial weights.
        norm_at: norms of single sites, in place of `norm`. What a norm type asks of the embedding
            and of the branches (`normlab.norms.around`) is that of `norm`.
    """

    @pinned
    def __init__(
        self,
        config: ModelConfig,
        norm: NormConfig,
        placement: PlacementConfig,
        vocab_size: int,
        seed: int = 0,
        norm_at: Sequence[NormAt] = (),
    ):
        config.check_norm(norm)
        for one in (norm, *(at.norm for at in norm_at)):
            require(
                isinstance(one, norms[one.type].Config),
                f"norm = {one}: expected the config of its type, norms[{one.type!r}].Config(…)",
            )
            placement.check_norm(one, config.layers)
        rngs = Keys(seed)
        normal = jax.nn.initializers.normal(config.std)
        make_norms = partial(norm_maker, norm, tuple(norm_at))
        make_norm = make_norms(placement.around(config.layers), "")
        self.config, self.norm, self.placement = config, norm, placement
        self.norm_at = tuple(norm_at)
        self.stacked = False  # one block that holds the weights of all: normlab.training.stacked
        self.read_block: Callable[[int], Block] | None = (
            None  # of blocks whose matrices are on disk
        )

        def table(rows: int, width: int) -> nnx.Embed:
            return nnx.Embed(rows, width, embedding_init=normal, rngs=cast(nnx.Rngs, rngs))

        def linear(n_in: int, n_out: int, bias: bool = False) -> Linear:
            return Linear(n_in, n_out, bias=bias, std=config.std, rngs=rngs)

        narrow = config.embed_width
        rows = narrow or config.width
        self.embed = table(vocab_size, rows)
        learned_positions = config.positions == "learned"
        self.positions = table(config.max_length, config.width) if learned_positions else None
        start = around(norm, config.width, 2 * config.layers)
        self.embed_scale = learned(start.embed_scale)
        self.embed_length = learned(config.embed_length or start.embed_length)
        self.norm_embed = make_norm("norm_embed", config.width)
        self.blocks = nnx.List(
            [
                Block(config, placement, make_norms, i, start.branch_gain, rngs)
                for i in range(config.layers)
            ]
        )
        self.norm_final = make_norm("norm_final", config.width)
        self.head = None if config.tied else linear(rows, vocab_size, config.head_bias)
        self.embed_in = None if narrow is None else linear(narrow, config.width)
        self.embed_out = None if narrow is None else linear(config.width, narrow)
        self._scale_weights(start)
        matching((at.sites for at in norm_at), [n.site.name for n in all_norms(self)])

    def _scale_weights(self, start: Around) -> None:
        """Multiply the initial weights by the factors that the norm type asks for."""
        for path, part in nnx.iter_graph(self):
            if part is self.embed:
                weights, factor = part.embedding, start.factor("embed")
            elif isinstance(part, Linear):
                shrunk = self._wiring(*map(str, path)).gain is None
                weights, factor = part.kernel, start.factor(str(path[-1]), shrunk)
            else:
                continue
            if factor != 1.0:
                weights[...] *= factor

    def _wiring(self, *path: str) -> ResidualConfig:
        """How the block sits in the stream that `path` leads into; the plain one for the head."""
        if path[0] != "blocks":
            return ResidualConfig()
        return self.placement.residual(path[2], int(path[1]), self.config.layers)

    def each_block(self) -> Iterator[Block]:
        """The blocks in order; where their matrices are on disk, they are read as they come."""
        for i, block in enumerate(self.blocks):
            yield block if self.read_block is None else self.read_block(i)

    def ends(self) -> "Transformer":
        """The same without its blocks, whose other parts it shares."""
        model = copy.copy(self)
        model.blocks, model.read_block = nnx.List([]), None
        return model

    @property
    def vocab_size(self) -> int:
        return self.embed.num_embeddings

    @property
    def max_length(self) -> int:
        return self.config.max_length

    def __call__(
        self, tokens: Int[Array, "b l"], context: Context | None = None
    ) -> Float[Array, "b l v"]:
        """Logits of the token after each position.

        Raises:
            ValueError: tokens that are not [b, l], or a sequence longer than `max_length`.
            UnknownNameError: a scale for a site that the model doesn't have.
        """
        context = context or Context()
        self.check_sites(context.scales)
        x = context.stream(self.embed_tokens(tokens, context))
        if self.stacked:
            x = scanned(self.blocks[0], x, context)
        else:
            call = rematerialized if context.compute.remat else Block.__call__
            for block in self.blocks:
                x = context.stream(call(block, x, context))
        return self.logits(self.read_stream(x, context), context)

    def check_sites(self, named: Collection[str]) -> None:
        """Raise `UnknownNameError` for a name that no site of the model has."""
        sites = [norm.site.name for norm in all_norms(self)] if named else []
        for name in named:
            choice("site", name, sites)

    def embed_tokens(self, tokens: Int[Array, "b l"], context: Context) -> Float[Array, "b l d"]:
        """The residual stream before the first block."""
        if tokens.ndim != 2:
            raise ValueError(f"tokens of shape {list(tokens.shape)}: expected [batch, length]")
        length = tokens.shape[1]
        if length > self.config.max_length:
            raise ValueError(
                f"{length} tokens are more than model.max_length = {self.config.max_length}"
            )
        factor: Any = self.config.embed_factor
        x = self.embed(tokens) * context.holds(factor)
        if self.embed_length is not None:
            x = self.embed_length[...] * x / length_of(x)
        if self.embed_in is not None:
            x = context.stores("embed_in", self.embed_in(x))
        if self.positions is not None:
            x = x + self.positions(jnp.arange(length))
        if self.embed_scale is not None:
            x = x * self.embed_scale[...]
        x = context.stores("embed", x)
        return context.dropout(context.norm(self.norm_embed, x), self.config.dropout)

    def read_stream(self, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
        """What the head reads of the residual stream after the last block."""
        return context.compute.narrow(context.norm(self.norm_final, x))

    def logits(
        self, x: Float[Array, "b l d"], context: Context | None = None
    ) -> Float[Array, "b l v"]:
        """The head: the embedding transposed, or a matrix of its own; float32 at least."""
        context = context or Context()
        wide = jnp.promote_types(x.dtype, jnp.float32)
        if self.embed_out is not None:
            x = context.stores("embed_out", self.embed_out(x))
        if self.head is not None:
            logits = self.head(x).astype(wide)
        else:
            table = self.embed.embedding[...].astype(x.dtype)
            rows = (x.reshape(-1, x.shape[-1]) @ transposed(table)).astype(wide)
            if self.embed_length is not None:
                rows = rows / length_of(self.embed.embedding[...])[:, 0]
            logits = rows.reshape(*x.shape[:-1], rows.shape[-1])
        logits = context.stores("logits", times(self.config.logit_factor, logits))
        cap = self.config.logit_softcap
        return logits if cap is None else context.stores("capped", soft_cap(logits, cap))


@jax.custom_vjp
def transposed(table: Float[Array, "v d"]) -> Float[Array, "d v"]:
    """The table transposed, whose gradient is `turned` after the product that it comes from.

    XLA would turn the product around, which is half as fast on a CPU where tables are small.
    """
    return table.T


transposed.defvjp(lambda table: (table.T, None), lambda _, d: (turned(d),))


def length_of(rows: Float[Array, "*batch d"]) -> Float[Array, "*batch 1"]:
    """‖x‖ of each row, at least 1e-12 as in the authors' code, where it has the derivative 0."""
    square = jnp.sum(rows * rows, axis=-1, keepdims=True)
    return jnp.sqrt(jnp.maximum(square, 1e-24))
