"""The parts of a transformer that the transforms cut and sew: who reads a norm, who writes."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from normlab.model import Transformer
from normlab.model.attention import Attention
from normlab.model.keys import Keys
from normlab.model.linear import Linear
from normlab.model.residual import Residual
from normlab.norms import Norm
from normlab.norms.statistics import LayerNorm, RMSNorm, ScaleNorm
from normlab.parallel.sharding import on_host

Vector = Float[np.ndarray, "..."]

_in_place: ContextVar[bool] = ContextVar("in_place", default=False)


@contextmanager
def in_place() -> Iterator[None]:
    """Inside, rewrites change the model that they are given, so that no old weights are held.

    One that is refused may have changed it already.
    """
    token = _in_place.set(True)
    try:
        yield
    finally:
        _in_place.reset(token)


def new_model(model: Transformer) -> Transformer:
    """A model to be rewritten: a copy that shares its arrays, or `in_place` the model itself."""
    return model if _in_place.get() else nnx.clone(model)


def sublayers(model: Transformer) -> Iterator[Residual]:
    """Every sublayer with its way around it, in the order of the forward pass."""
    for block in model.blocks:
        yield block.attention
        yield block.mlp


def is_statistical(norm: Any) -> bool:
    """Whether it is a LayerNorm or an RMSNorm, and nothing that extends them."""
    return type(norm) in (LayerNorm, RMSNorm)


def acts_last(norm: Norm) -> bool:
    """Whether γ and β are factor and addend after everything else, so that others can take them.

    A ScaleNorm's g is one too, though it isn't stored as a weight.
    """
    return norm.affine_last or isinstance(norm, ScaleNorm)


def take_affine(norm: Norm) -> tuple[Vector, Vector] | None:
    """A norm's (γ, β), which it loses, in place; None where it has neither."""
    gamma, beta = norm.gamma(), norm.beta()
    if gamma is None and beta is None:
        return None
    set_affine(norm, None, None)
    return as_float64(gamma, 1.0), as_float64(beta, 0.0)


def set_affine(norm: Any, gamma: Vector | None, beta: Vector | None) -> None:
    """Give a norm, in place, this γ and β, stored as they act, or none; its config says so."""
    if isinstance(norm, ScaleNorm):  # its γ is a scalar, g/√d
        put(norm.length, math.sqrt(norm.width) * as_float64(gamma, 1.0))
        return
    told = {"use_weight": gamma is not None, "bias": beta is not None, "one_plus": False}
    fields = {f.name for f in dataclasses.fields(norm.config)}
    norm.config = dataclasses.replace(norm.config, **{k: told[k] for k in fields & told.keys()})
    for name, values in (("weight", gamma), ("bias", beta)):
        old = getattr(norm, name)
        dtype = jnp.float32 if old is None else old[...].dtype
        new = None if values is None else jnp.broadcast_to(jnp.asarray(values, dtype), norm.width)
        setattr(norm, name, nnx.data(None if new is None else nnx.Param(new)))


def as_float64(given: Any, default: float) -> Vector:
    """γ or β, or what none means, in float64."""
    return on_host(default if given is None else given).astype(np.float64)


def readers(branch: Any) -> list[Linear]:
    """The linear maps that a sublayer's input enters: Q, K and V, or E (and B)."""
    if isinstance(branch, Attention):
        return [branch.query, branch.key, branch.value]
    return [branch.gate] if branch.up is None else [branch.gate, branch.up]


def writer(branch: Any) -> Linear:
    """The linear map that a sublayer's output leaves: P, or G."""
    return branch.out if isinstance(branch, Attention) else branch.down


def read_by_maps(model: Transformer) -> Iterator[tuple[Any, str, list[Linear]]]:
    """Each norm whose output only linear maps read: (owner, the owner's attribute, the maps).

    The final norm is one where the head is a matrix of its own. A tied head is the embedding too,
    which must stay as it is.
    """
    for sub in sublayers(model):
        if sub.norm_in is not None:
            yield sub, "norm_in", readers(sub.branch)
        if getattr(sub.branch, "sub_norm", None) is not None:
            yield sub.branch, "sub_norm", [writer(sub.branch)]
    last = model.head if model.embed_out is None else model.embed_out
    if model.norm_final is not None and last is not None:
        yield model, "norm_final", [last]


def float64(param: Any) -> Float[np.ndarray, "..."]:
    """A parameter's values, for arithmetic that is rounded once at its end."""
    return on_host(param[...]).astype(np.float64)


def put(param: Any, values: Float[np.ndarray, "..."]) -> None:
    """Give a parameter new values, rounded to its type."""
    param[...] = jnp.asarray(values, param[...].dtype)


def add_to_bias(linear: Linear, shift: Float[np.ndarray, " o"]) -> None:
    """Add a constant to what a linear map gives, by its bias; one without a bias gets one."""
    if linear.bias is None:
        linear.bias = nnx.data(nnx.Param(jnp.asarray(shift, linear.kernel[...].dtype)))
    else:
        put(linear.bias, float64(linear.bias) + shift)


def multiply(linear: Linear, factor: float) -> None:
    """Multiply what a linear map gives, its bias included."""
    for param in (linear.kernel, linear.bias):
        if param is not None:
            put(param, float64(param) * factor)


def untie(model: Transformer) -> None:
    """Give `model`, in place, a head of its own that does what its tied one did."""
    if model.head is not None:
        return
    rows = model.embed.embedding[...]
    head = Linear(rows.shape[1], 1, bias=False, std=0.0, rngs=Keys(0))
    head.kernel = nnx.Param(rows.T)
    model.head = nnx.data(head)
    model.config = dataclasses.replace(model.config, tied=False)
