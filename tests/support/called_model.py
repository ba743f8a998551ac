"""A model that is called and not traced with what calls it, as one of another framework is."""

from functools import partial

import jax
from flax import nnx

from normlab.model import Context, TokenModel


class Called(TokenModel):
    """A transformer; no window that it is given may have padding.

    Args:
        model: the transformer.
        padding: the token that stands for it.
    """

    def __init__(self, model, padding=0):
        self.model, self.padding = model, padding

    @property
    def vocab_size(self):
        return self.model.vocab_size

    @property
    def max_length(self):
        return self.model.max_length

    def __call__(self, tokens, context=None):
        assert (tokens != self.padding).all()
        asked = context.precision, context.observe, context.edge, context.capture
        logits, *seen = _forward(*nnx.split(self.model), context.scales, tokens, *asked)
        for kept, one in zip((context.observed, context.stored, context.inputs), seen, strict=True):
            kept |= one
        return logits


@partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def _forward(graphdef, params, scales, tokens, precision, observe, edge, capture):
    context = Context(precision, scales, observe=observe, edge=edge, capture=capture)
    logits = nnx.merge(graphdef, params)(tokens, context)
    return logits, context.observed, context.stored, context.inputs
