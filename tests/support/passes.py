"""Passes through a model: one compiled program forward that shows all of it, one back."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
from flax import nnx

from normlab.loss import token_nll
from normlab.model import Context
from normlab.norms import all_norms
from normlab.runs.names import to_names
from tests.conftest import VOCAB, tiny_model

QUICK = {"xla_backend_optimization_level": 0}
"""For programs that run a few times: they compile in half the time."""

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 16)).astype(np.int32)
PLAIN = {"gated": False, "activation": "gelu", "positions": "learned", "bias": True}
GATED = {"heads": 4, "kv_heads": 2}
LAYERNORM_BEFORE_PLAIN = ("hybridnorm", "hybridnorm-star", "keel", "mix-ln", "reordered")
EVERYWHERE = {"norm_embed": True, "norm_qk": True}


OWN = {
    "mix-ln": {"post_share": 0.5},
    "reordered": EVERYWHERE | {"norm_qk_full": True},
    "sub-ln": EVERYWHERE | {"norm_qk_rotated": True, "norm_v": True},
    "peri": {"norm_embed": True},
    "sandwich": {"norm_embed": True},
}


def placed(placement, sites=None, **fields):
    """A model of this placement.

    Some placements stand for LayerNorms before plain MLPs, others for RMSNorms before gated ones;
    some have a norm on the embedding and on queries and keys, all if `sites` says so.
    """
    plain = placement in LAYERNORM_BEFORE_PLAIN
    norm, shape = ("layernorm", PLAIN) if plain else ("rmsnorm", GATED)
    where = (sites or {}) | OWN.get(placement, {})
    return tiny_model(norm, placement, placement_fields=where, **(shape | fields))


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _passed(graphdef, params, tokens, scales):
    context = Context(None, scales, capture=True)
    logits = nnx.merge(graphdef, params)(tokens, context)
    return {"logits": logits, "inputs": context.inputs, "streams": context.streams}


def passed(model, tokens=TOKENS, scales=None):
    """Logits, inputs of norms and streams.

    Args:
        model: models of one structure share the program.
        tokens: [2, 16].
        scales: of norms by site, a number for each; 1 where none is given.
    """
    given = {norm.site.name: shaped(norm, model.config, scales or {}) for norm in all_norms(model)}
    return SimpleNamespace(**jax.device_get(_passed(*nnx.split(model), tokens, given)))


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _returned(graphdef, params):
    def loss(params):
        logits = nnx.merge(graphdef, params)(TOKENS)
        return token_nll(logits[:, :-1], TOKENS[:, 1:]).mean()

    return jax.value_and_grad(loss)(params)


def gradient(model):
    """(the loss of TOKENS, its gradient)."""
    return jax.device_get(_returned(*nnx.split(model)))


def assert_causal(model, at=5):
    """No token matters to an earlier one's logits, and each to all later ones'."""

    def logits(places):
        tokens = TOKENS.copy()
        tokens[:, places] = (tokens[:, places] + 1) % VOCAB
        return passed(model, tokens).logits

    plain = logits([])
    later = logits(slice(at + 1, None))
    assert np.array_equal(later[:, : at + 1], plain[:, : at + 1]), "no later token may"
    assert np.any(later[:, at + 1 :] != plain[:, at + 1 :], axis=-1).all()
    for place in range(at + 1):
        moved = logits([place])
        assert np.any(moved[:, at] != plain[:, at], axis=-1).all(), "each earlier token must matter"


def shaped(norm, config, scales):
    """The scale of a norm as a rule gives it: a number, or [heads, 1]."""
    by_head = norm.site.kind in ("norm_qk", "norm_v") and norm.width == config.head_size
    heads = config.heads if ".query." in norm.site.name else config.kv
    scale = np.float32(scales.get(norm.site.name, 1.0))
    return np.broadcast_to(scale, (heads, 1) if by_head else ())


def by_name(tree):
    """A tree of parameters as float64 arrays by name."""
    return {name: np.asarray(a, np.float64) for name, a in to_names(tree).items()}
