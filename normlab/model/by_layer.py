"""A forward pass layer by layer: a program for each kind of layer, and none for the whole model.

XLA takes time to compile in proportion to what it is given. Blocks that differ in their weights and
in their number alone share a program, so that a deep model compiles as fast as a shallow one; and
the weights of one block at a time need be in memory (`Transformer.read_block`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from normlab.model.block import Block
from normlab.model.context import Context
from normlab.model.residual import Residual
from normlab.model.transformer import Transformer
from normlab.norms import Norm, Site
from normlab.parallel.sharding import whole_rows


class Layer(NamedTuple):
    """The embedding, a block, the last norm, or the head: a program, and its weights.

    Args:
        call: (module, tokens or rows, context) → rows or logits.
        graphdef: of the module; of a block the first one of its kind in the model.
        state: its weights.
        own: how the names of what is in it begin in the model: "blocks.7.".
        first: how they begin in the graphdef: "blocks.0.".
    """

    call: Callable[..., Array]
    graphdef: nnx.GraphDef[Any]
    state: Any
    own: str = ""
    first: str = ""

    def given(self, by_site: Mapping[str, Any]) -> dict[str, Any]:
        """What is given by site, of this layer, by the names of the graphdef."""
        return {
            self.first + name.removeprefix(self.own): value
            for name, value in by_site.items()
            if name.startswith(self.own or "norm_")
        }

    def found(self, by_name: Mapping[str, Any]) -> dict[str, Any]:
        """What the program tells by the names of the graphdef, by those of the model."""
        return {self.own + name.removeprefix(self.first): x for name, x in by_name.items()}


class ByLayer:
    """A model's layers in the order of its forward pass.

    Args:
        model: read, not changed.
        weights: (a part of the model) → its state, as it is to be computed with.
        head: whether the pass goes on to the logits.
    """

    def __init__(
        self,
        model: Transformer,
        weights: Callable[[nnx.Module], Any] = nnx.state,
        head: bool = True,
    ):
        self._model, self._weights, self._head = model, weights, head
        self._streamed = model.read_block is not None
        self._kept = [] if self._streamed else list(self._read())

    def __call__(
        self, run: Callable[..., Any], batches: Sequence[Any], *by_site: Mapping[str, Any]
    ) -> list[tuple[Any, dict[str, Any]]]:
        """Each batch through one layer, then through the next.

        Args:
            run: (call, graphdef, state, *what is given by site, tokens or rows) → (rows or logits,
                what it tells by name); compiled, with the first two static.
            batches: tokens [b, l].
            by_site: what `run` is given of each layer, such as scales.

        Returns:
            Of each batch logits [b, l, v] (rows without a head), and all that was told by name.
        """
        rows, told = list(batches), [dict[str, Any]() for _ in batches]
        for layer in self._read() if self._streamed else self._kept:
            if self._streamed:  # no more than the next one is read before this one is done with
                jax.block_until_ready(rows)
            given = [layer.given(one) for one in by_site]
            for i, x in enumerate(rows):
                rows[i], found = run(layer.call, layer.graphdef, layer.state, *given, x)
                told[i] |= layer.found(found)
        return list(zip(rows, told, strict=True))

    def _read(self) -> Iterator[Layer]:
        ends = self._model.ends()
        graphdef, state = nnx.graphdef(ends), self._weights(ends)
        yield Layer(_embed, graphdef, state)
        kinds = dict[nnx.GraphDef[Any], tuple[nnx.GraphDef[Any], str]]()
        for i, block in enumerate(self._model.each_block()):
            own = f"blocks.{i}."
            kind, first = kinds.setdefault(_unnamed(block), (nnx.graphdef(block), own))
            yield Layer(_through, kind, self._weights(block), own, first)
        yield Layer(_last, graphdef, state)
        if self._head:
            yield Layer(_logits, graphdef, state)


def _unnamed(block: Block) -> nnx.GraphDef[Any]:
    """A block's structure without its number: what blocks of one kind have in common."""
    copy = nnx.merge(*nnx.split(block))
    for _, node in nnx.iter_graph(copy):
        if isinstance(node, Norm):
            node.site = Site(node.site.kind, node.site.name.split(".", 2)[-1])
        elif isinstance(node, Residual):
            node.path = node.path.split(".", 2)[-1]
    return nnx.graphdef(copy)


def _embed(
    model: Transformer, tokens: Int[Array, "b l"], context: Context
) -> Float[Array, "b l d"]:
    return whole_rows(model.embed_tokens(tokens, context))


def _through(block: Block, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
    return whole_rows(block(x, context))


def _last(model: Transformer, x: Float[Array, "b l d"], context: Context) -> Float[Array, "b l d"]:
    return whole_rows(model.read_stream(x, context))


def _logits(
    model: Transformer, x: Float[Array, "b l d"], context: Context
) -> Float[Array, "b l v"]:
    return model.logits(x, context)
