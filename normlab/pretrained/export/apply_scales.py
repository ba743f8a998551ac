"""Scaled norms in real FP16: `apply(model, "scales.json")` for a model of transformers.

This file needs PyTorch alone. scales.json, written beside it by `python -m evaluate export`, names
the module of each norm, its static scale s and the format of each stage:

    model = AutoModelForCausalLM.from_pretrained(DIR, dtype=torch.float16)
    apply(model, f"{DIR}/scales.json")

A norm then computes z = x·(1/s), q = z² in halves, and Σq by additions of two halves each; then
z / √(Σ/d + ε/s²) and its weight. In exact arithmetic s changes nothing. In halves it keeps Σ in
range. (`torch.sum` of halves won't do: it adds in float32.)
"""

import ctypes
import difflib
import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

VERSION = 1
FORMATS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
STAGES = {
    "sum", "input", "square", "mean", "eps", "root", "product", "stored", "one_plus", "weight",
    "cast_first", "bias", "output",
}  # fmt: skip


def apply(model: nn.Module, path: str | Path = "scales.json", check: bool = True) -> nn.Module:
    """Have every norm that the file names compute as the file says, in place.

    Args:
        model: of the exported weights, in float16 or float32; or what holds it.
        path: of scales.json.
        check: compare the weights with those that the scales were made for.

    Returns:
        The model.

    Raises:
        ValueError: another version, a stage that isn't computed here, a module that the model
            lacks, or other weights.
    """
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    if told["version"] != VERSION:
        raise ValueError(f"{path} is of version {told['version']}: expected {VERSION}")
    if unknown := sorted(told["stages"].keys() - STAGES):
        raise ValueError(f"{path}: {unknown[0]} is no stage that is computed here")
    modules = {name: _named(model, name, path) for name in told["modules"]}
    if check and (found := weights_hash(model)) != told["weights"]:
        raise ValueError(
            f"{path} is of weights {told['weights'][:12]}…, the model has {found[:12]}…: expected "
            "the exported ones in float16 or float32 (check=False does without)"
        )
    for name, module in modules.items():
        module.forward = partial(scaled_norm, module, told["modules"][name], told["stages"])
    return model


def _named(model: nn.Module, name: str, path: str | Path) -> nn.Module:
    """The module of that name, with more or with less before it."""
    modules = dict(model.named_modules())
    ends = [n for n in modules if n and (f".{n}".endswith(f".{name}") or name.endswith(f".{n}"))]
    if name not in modules and len(ends) != 1:
        near = difflib.get_close_matches(name, modules, n=1, cutoff=0)
        raise ValueError(f"{path}: the model has no module {name}; the nearest is {near[0]}")
    return modules[name] if name in modules else modules[ends[0]]


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of the weights in half precision, whatever their names and their order."""
    digests = []
    for weight in model.parameters():
        half = weight.detach().to("cpu", torch.float16).contiguous()
        shape = ",".join(map(str, half.shape))
        held = ctypes.string_at(half.data_ptr(), half.nbytes)
        digests.append(hashlib.sha256(f"{shape}:".encode() + held).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def scaled_norm(
    module: nn.Module, told: dict[str, Any], stages: dict[str, Any], x: Tensor
) -> Tensor:
    """What the norm `module` makes of the rows x [*batch, d], in their dtype.

    Args:
        module: whose weight and bias are read, where it has them.
        told: of scales.json's "modules".
        stages: the format of each stage; one that isn't named is float32.
        x: rows.
    """
    stages = {"sum": {"format": "fp32"}} if told["keep_fp32"] else stages
    over, eps = (1.0, told["eps"]) if told["keep_fp32"] else (told["inverse"], told["eps_over_s2"])
    over, eps = (_by_head(value, told["head_axis"], x) for value in (over, eps))
    total = stages["sum"]

    def row(z: Tensor) -> Tensor:
        return z.to(FORMATS[total["format"]]) if total.get("input") else z

    came, z = x.dtype, row(_held(x, stages.get("input")))
    z = row(z.float() * over)
    if told["kind"] == "layernorm":
        z = row(z.float() - _mean(_sum(z, total), x.shape[-1], stages))
    mean_square = _mean(_sum(_squares(z, stages.get("square")), total), x.shape[-1], stages)
    v = _held(mean_square + _held(eps, stages.get("eps")), stages.get("eps"))
    y = _held(_over_root(z.float(), v, stages.get("root", {})), stages.get("product"))
    return _affine(module, told["one_plus"], stages, y).to(came)


def _by_head(value: float | list[float], axis: int | None, x: Tensor) -> Tensor:
    """A number, or one for each head, which lie on `axis` of x."""
    found = torch.tensor(value, dtype=torch.float32, device=x.device)
    if found.ndim == 0:
        return found
    if axis is None or x.shape[axis] != len(found):
        raise ValueError(f"axis {axis} of rows {list(x.shape)}: expected {len(found)} heads there")
    return found.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def _held(x: Tensor, to: str | None) -> Tensor:
    """Rounded to a format; in float32."""
    return x.float() if to is None else x.to(FORMATS[to]).float()


def _squares(z: Tensor, square: str | None) -> Tensor:
    """z², rounded once: to the format of z, which is the adder's or float32, or as told."""
    return z * z if square is None else _held(z.float() * z.float(), square)


def _sum(terms: Tensor, total: dict[str, Any]) -> Tensor:
    """Σ over the last axis, which stays: each term, and each addition, in the format."""
    terms = terms.to(FORMATS[total["format"]])
    if "lanes" in total:
        terms = _lanes(terms, total["lanes"])
    elif "order" not in total:
        return terms.sum(-1, keepdim=True)
    while terms.shape[-1] > 1:
        terms = pad(terms, (0, terms.shape[-1] % 2))
        terms = terms[..., 0::2] + terms[..., 1::2]
    return terms.float()


def _lanes(terms: Tensor, k: int) -> Tensor:
    """The k sums of every k-th term, each from left to right."""
    terms = pad(terms, (0, -terms.shape[-1] % k))
    total = torch.zeros_like(terms[..., :k])
    for piece in terms.split(k, -1):
        total = total + piece
    return total


def _mean(total: Tensor, d: int, stages: dict[str, Any]) -> Tensor:
    mean = stages.get("mean", {})
    if mean.get("kind") == "divide":
        return _held(total / torch.full_like(total, d), mean.get("format"))
    share = torch.tensor(1.0 / d, dtype=torch.float32, device=total.device)
    share = _held(share, mean.get("format"))
    return _held(total * share, mean.get("format"))


def _over_root(z: Tensor, v: Tensor, root: dict[str, Any]) -> Tensor:
    """z/√v; 0 where v is infinite. √ is float64's, as PyTorch's in float32 may be one bit off."""
    whole, to, kind = v.double().sqrt().float(), root.get("format"), root.get("kind", "rsqrt")
    if kind == "rsqrt":
        return z * _held(1.0 / whole, to)
    whole = _held(whole, to)
    return z / whole if kind == "divide" else z * _held(1.0 / whole, to)


def _affine(module: nn.Module, one_plus: bool, stages: dict[str, Any], y: Tensor) -> Tensor:
    """γ ⊙ y + β, each where the module has it."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if stages.get("cast_first"):
        y = _held(y, stages["output"])
    if weight is not None:
        gamma = _held(weight, stages.get("stored"))
        if one_plus:
            gamma = _held(1.0 + _held(gamma, stages.get("one_plus")), stages.get("one_plus"))
        y = _held(y * _held(gamma, stages.get("weight")), stages.get("weight"))
    if bias is not None:
        beta = _held(_held(bias, stages.get("stored")), stages.get("bias"))
        y = _held(y + beta, stages.get("bias"))
    return _held(y, stages.get("output"))
