"""A PyTorch model whose norms compute as normlab does, for as long as a `with` block lasts."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from normlab.config import require
from normlab.model import Context
from normlab.norms import Norm
from normlab.numerics import Arithmetic, RangeCounts
from normlab.registry import choice
from normlab.torch_bridge.find import find
from normlab.torch_bridge.norm_call import NormCall
from normlab.torch_bridge.rows import Layout, to_jax, to_torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Replaced:
    """What was replaced, and what was seen since.

    Args:
        norms: by the module's name, the norm that computes in its place.
        left: by name, what looks like a norm and is left alone, and why.
        observed: by name, what the rows were and what the precision made of their sums; a norm that
            was not called is missing.
    """

    norms: Mapping[str, Norm]
    left: Mapping[str, str]
    observed: Mapping[str, RangeCounts] = field(repr=False)


@contextmanager
def replaced(
    model: torch.nn.Module,
    precision: str | Arithmetic = "fp32",
    scales: Mapping[str, Any] | None = None,
) -> Iterator[Replaced]:
    """Inside, every LayerNorm and RMSNorm of the model computes in `precision`.

    Args:
        model: in eval mode, on a device that JAX has; nothing in it is differentiated. Of half
            precision the rows are taken to float32, and leave as they came.
        precision: of the norms, or its string: "fp16:pairwise", or a datapath's name.
        scales: by the module's name, as `normlab.torch_bridge.scales` gives them.

    Raises:
        ValueError: a model in training mode.
        UnknownNameError: a scale of a module that is no norm.
    """
    require(not model.training, "a model in training mode: expected model.eval() before")
    found, context = find(model), Context(precision, scales, observe=True)
    for name in context.scales:
        choice("norm", name, found.norms)
    calls = [NormCall(norm) for norm in found.norms.values()]
    with installed(model, calls, context):
        yield Replaced(*found, context.observed)


@contextmanager
def installed(
    model: torch.nn.Module, calls: list[NormCall], context: Context, layout: Layout | None = None
) -> Iterator[None]:
    """Inside, the modules of these norms compute by them; nothing is differentiated."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for call in calls:
            forward = partial(_forward, call, context, layout or Layout())
            stack.enter_context(_with_forward(model.get_submodule(call.name), forward))
        yield


@contextmanager
def _with_forward(module: torch.nn.Module, forward: Any) -> Iterator[None]:
    own = vars(module).get("forward")  # another library may have put one there
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _forward(
    call: NormCall, context: Context, layout: Layout, *given: torch.Tensor, **named: torch.Tensor
) -> torch.Tensor:
    (x,) = (*given, *named.values())
    require(
        x.dtype in FLOATS,
        f"{call.name} was given rows of {x.dtype}: expected float32 or narrower (model.float())",
    )
    rows = layout.rows(call.name, x)
    return layout.back(call.name, to_torch(call(to_jax(rows), context)), x)
