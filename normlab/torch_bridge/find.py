"""Which modules of a PyTorch model are norms of ours: by class, and then by numbers."""

import copy
import inspect
import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from normlab.model import Context
from normlab.norms import Norm, Site, norms
from normlab.numerics.eps import EpsForm
from normlab.torch_bridge.norm_call import NormCall
from normlab.torch_bridge.rows import to_jax

NAMED = re.compile(r"(rms|layer)_?norm|norm$", re.IGNORECASE)
"""Names of classes that may be such norms."""
OTHERS = (
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.GroupNorm,
    torch.nn.LocalResponseNorm,
)
"""PyTorch's own that normalize over something else than a row."""
EPS = ("eps", "variance_epsilon", "epsilon", "layer_norm_eps", "norm_eps")
"""How ε is called."""
USUAL_EPS = (1e-5, 1e-6, 1e-12, float(np.finfo(np.float32).eps))
"""What it may be where it isn't said."""
SIZES = (1.0, 1e-2, 1e-4)
"""Of the rows that are tried: ε rules the small ones."""
TOLERANCE = 1e-6
"""Of a row's largest element, in float32."""


class Found(NamedTuple):
    """The norms of a model.

    Args:
        norms: by the module's name a norm that computes the same.
        left: by name, what looks like a norm and is left alone, and why.
    """

    norms: dict[str, Norm]
    left: dict[str, str]

    def __str__(self) -> str:
        """In a line, and one more for each module left alone."""
        types = [norm.config.type for norm in self.norms.values()]
        kinds = ", ".join(f"{types.count(t)} {t}" for t in sorted(set(types))) or "none"
        return "\n".join(
            [f"norms computed by normlab: {kinds}"]
            + [f"left alone: {name}: {why}" for name, why in self.left.items()]
        )


class NotOurs(ValueError):
    """Why a module is left alone."""


def find(model: torch.nn.Module) -> Found:
    """Every module that is a LayerNorm or an RMSNorm, checked in float32 on rows of three sizes."""
    found = Found({}, {})
    for name, module in model.named_modules():
        if NAMED.search(type(module).__name__) and not isinstance(module, OTHERS):
            if any(True for _ in module.children()):
                continue
            try:
                found.norms[name] = _same(name, module)
            except NotOurs as why:
                found.left[name] = f"{type(module).__name__}: {why}"
    return found


def _same(name: str, module: torch.nn.Module) -> Norm:
    """The norm that gives what the module gives.

    Raises:
        NotOurs: there is none.
    """
    takes = list(inspect.signature(module.forward).parameters)
    if len(takes) != 1:
        raise NotOurs(f"its forward takes {', '.join(takes) or 'nothing'}: expected rows alone")
    twin = copy.deepcopy(module).float().cpu().eval()
    params = {k: p.detach().numpy() for k, p in _vectors(twin).items()}
    width = _width(twin, params)
    x = np.random.default_rng(0).normal(0.5, 1.0, (2, len(SIZES), width)).astype(np.float32)
    x *= np.array(SIZES, np.float32)[:, None]
    try:
        with torch.no_grad():
            theirs = twin(torch.from_numpy(x)).numpy()
    except Exception as error:  # whatever a stranger's module raises on rows
        raise NotOurs(f"it raises {type(error).__name__} on rows [2, 3, {width}]") from error
    if theirs.shape != x.shape:
        raise NotOurs(f"it makes {list(theirs.shape)} of rows {list(x.shape)}")
    config = min(
        _configs(twin, params),
        key=lambda c: _gap(norms[c.type].reference(x, c, _used(c, params)), theirs),
    )
    made = norms[config.type](width, Site("torch", name), config)
    for key, parameter in (("weight", made.weight), ("bias", made.bias)):
        if parameter is not None:
            parameter[...] = params[key]
    ours = np.asarray(NormCall(made)(to_jax(torch.from_numpy(x)), Context("fp32")))
    if not (gap := _gap(ours, theirs)) <= TOLERANCE:
        raise NotOurs(f"the nearest, {config.type}, is {gap:.1g} of a row's largest away")
    return made


def _vectors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weight and bias, where it has them."""
    found = {name: getattr(module, name, None) for name in ("weight", "bias")}
    return {name: p for name, p in found.items() if isinstance(p, torch.Tensor) and p.ndim == 1}


def _width(module: torch.nn.Module, params: dict[str, np.ndarray]) -> int:
    """Of its rows; of a norm that takes rows of any width some width."""
    if params:
        return next(iter(params.values())).size
    return getattr(module, "normalized_shape", (32,))[-1]


def _configs(module: torch.nn.Module, params: dict[str, np.ndarray]) -> Iterator[Any]:
    """All that it may be; without a weight first, for a weight of ones may be there for show."""
    said = [v for name in EPS if isinstance(v := getattr(module, name, None), (int, float))]
    weights = [{"use_weight": False}]
    if "weight" in params:
        weights += [{"use_weight": True}, {"use_weight": True, "one_plus": True}]
    for center, weight, eps, form in itertools.product(
        (False, True), weights, said or USUAL_EPS, EpsForm
    ):
        kind: Any = norms["layernorm" if center else "rmsnorm"].Config
        told = {"eps": float(eps), "eps_form": str(form), "bias": "bias" in params}
        yield kind(center=center, **told, **weight)


def _used(config: Any, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return params if config.use_weight else {k: v for k, v in params.items() if k != "weight"}


def _gap(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, of the largest element of its row; NaN, too, is one."""
    largest = np.abs(theirs).max(axis=-1, keepdims=True)
    gap = np.abs(ours - theirs) / np.where(largest > 0, largest, 1.0)
    return float(np.where(np.isnan(gap), np.inf, gap).max())
