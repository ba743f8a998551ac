"""scales.json: the static scale of every norm of an exported model, by the name of its module.

`apply_scales.py`, which is copied beside it, computes what it says with PyTorch alone.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from normlab.config import build, require
from normlab.model import Transformer
from normlab.norms import Norm
from normlab.numerics import Arithmetic, Datapath, Precision, arithmetic
from normlab.numerics.datapath import FORMATS_OF
from normlab.numerics.eps import EpsForm
from normlab.pretrained.names import Names
from normlab.registry import choice
from normlab.results.column import Column
from normlab.scaling import scales

VERSION = 1
SIMPLE = ("fp16", "bf16", "fp32")
"""Formats that PyTorch has too."""
ORDERS = ("pairwise", "sequential", "lanes")
HEAD_AXIS = {"gemma3_text": 1, "qwen3": 2}
"""Where the heads lie in what transformers hands a norm on each head's queries or keys."""
KINDS = ("rmsnorm", "layernorm")


@dataclass(frozen=True)
class ModuleScale:
    """The scale of one norm.

    Args:
        site: what the norm is called here.
        kind: one of `KINDS`.
        one_plus: the module holds γ − 1.
        keep_fp32: it computes in float32, without a scale.
        head_axis: of the rows' axes that on which heads lie, where each has a scale of its own.
        eps: ε.
        scale: s; a number for each head where `head_axis` is one.
        inverse: 1/s in float32, as it is multiplied.
        eps_over_s2: ε/s² in float32.
    """

    site: str
    kind: str
    one_plus: bool
    keep_fp32: bool
    head_axis: int | None
    eps: float
    scale: tuple[float, ...]
    inverse: tuple[float, ...]
    eps_over_s2: tuple[float, ...]


@dataclass(frozen=True)
class ScalesFile:
    """What scales.json says.

    Args:
        family: `model_type` of the exported config.json.
        rule: that made the scales.
        datapath: its name, or a precision: how each norm computes that isn't kept in FP32.
        stages: the same stage by stage; one that isn't named is float32.
        weights: `weights_hash` of the exported weights.
        modules: a norm's module in transformers → its scale.
    """

    family: str
    rule: str
    datapath: str
    stages: dict[str, Any]
    weights: str
    modules: dict[str, ModuleScale]

    def write(self, folder: Path) -> None:
        """scales.json, and beside it what applies it."""
        modules = {name: _spelled(scale) for name, scale in self.modules.items()}
        said = {"version": VERSION} | dataclasses.asdict(self) | {"modules": modules}
        (folder / "scales.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        code = Path(__file__).with_name("apply_scales.py").read_bytes()
        (folder / "apply_scales.py").write_bytes(code)

    @classmethod
    def read(cls, path: Path) -> "ScalesFile":
        """What `write` wrote.

        Raises:
            TypeError, ValueError: it can't be what `write` wrote; the message names the key.
        """
        said = json.loads(path.read_text(encoding="utf-8"))
        version = said.pop("version", None)
        require(version == VERSION, f"{path} is of version {version}: expected {VERSION}")
        missing = {f.name for f in dataclasses.fields(cls)} - said.keys()
        require(not missing, f"{path} has no {', '.join(sorted(missing))}")
        modules = {name: _read(name, told) for name, told in said.pop("modules").items()}
        return cls(**said, modules=modules)


def scales_file(
    model: Transformer,
    family: str,
    names: Names,
    column: Column,
    weights: str,
    keep: Collection[str] = (),
    calibration: Int[Array, "w l"] | None = None,
) -> ScalesFile:
    """The scales of every norm of a model, as its exported modules are to compute.

    Args:
        model: whose norms they are.
        family: its `model_type`.
        names: of its modules in transformers.
        column: how its norms compute, and by which rule.
        weights: `weights_hash` of what is exported.
        keep: sites that compute in float32.
        calibration: windows of tokens, for a rule that looks at text.

    Raises:
        ValueError: a rule that gives each row a scale, a norm or a stage that apply_scales.py
            doesn't compute.
        UnknownNameError: no such site to keep.
    """
    spelled = stages(column.precision)
    norms = {".".join(map(str, p)): n for p, n in nnx.iter_graph(model) if isinstance(n, Norm)}
    sites = [norm.site.name for norm in norms.values()]
    for site in keep:
        choice("site", site, sites)
    for norm in norms.values():
        require(
            norm.config.type in KINDS and norm.eps_form is EpsForm.UNDER,
            f"norm {norm.config.type!r} at {norm.site.name}: expected rmsnorm or layernorm with ε "
            "under the root",
        )
    require(column.rule is not None, f"{column}: expected a scale rule, such as fp16+random_tokens")
    found = scales(model, str(column.rule), pow2=column.pow2, calibration=calibration)
    require(
        not any(callable(scale) for scale in found.values()),
        f"rule {column.rule!r} gives each row a scale of its own, which no file can hold: "
        "expected a static one, such as random_tokens",
    )
    modules: dict[str, ModuleScale] = {}
    for path, norm in norms.items():
        made = _scale(norm, np.asarray(found[norm.site.name]), family, names, keep)
        name = names.written(names.module(path))
        first = modules.setdefault(name, made)  # Phi has two sites in one module
        require(
            dataclasses.replace(made, site=first.site) == first,
            f"{name} is {first.site} and {made.site}: expected one scale for both",
        )
    rule = f"{column.rule}{'.pow2' * column.pow2}"
    return ScalesFile(family, rule, str(column.precision), spelled, weights, modules)


def _scale(
    norm: Norm, scale: np.ndarray, family: str, names: Names, keep: Collection[str]
) -> ModuleScale:
    c, site = norm.config, norm.site.name
    require(
        not scale.ndim or family in HEAD_AXIS,
        f"{site}: each head has a scale; where heads lie is known of {', '.join(HEAD_AXIS)} only, "
        f"not of {family}",
    )
    inverse = np.float32(1) / scale.astype(np.float32)
    beside = np.asarray(norm.eps_form.beside_mean(c.eps, jnp.asarray(inverse)))
    return ModuleScale(
        site=site,
        kind=KINDS[c.center],
        one_plus=bool(names.gain_offset),
        keep_fp32=site in keep,
        head_axis=HEAD_AXIS[family] if scale.ndim else None,
        eps=c.eps,
        scale=_numbers(scale),
        inverse=_numbers(inverse),
        eps_over_s2=_numbers(beside),
    )


def _numbers(values: Float[np.ndarray, "..."]) -> tuple[float, ...]:
    return tuple(map(float, np.ravel(values)))


def stages(given: str | Arithmetic) -> dict[str, Any]:
    """A datapath as scales.json has it: what isn't float32, stage by stage.

    Raises:
        ValueError: one that apply_scales.py doesn't compute; the message names the stage.
    """
    path = arithmetic(given)
    path = Datapath(sum=str(path)) if isinstance(path, Precision) else path
    found = {name: getattr(path, name) for name in path.stages}
    for name in ("mirrored", "tree", "variance", "fused"):
        require(name not in found, f"{path}: its {name} is not computed by apply_scales.py")
    for name in (*FORMATS_OF, "output"):
        _check_format(f"{path}: {name}", found.get(name))
    for name in ("mean", "root"):
        if name in found:
            found[name] = _changed(found[name])
            _check_format(f"{path}: {name}", found[name].get("format"))
    kind = path.root.kind
    require(
        kind in ("rsqrt", "sqrt", "divide"),
        f"{path}: root.kind = {kind!r} is not computed by apply_scales.py, which has rsqrt, sqrt "
        "and divide",
    )
    return {"sum": _sum(path.precision), **found}


def _changed(stage: Any) -> dict[str, Any]:
    fields = ((f, getattr(stage, f.name)) for f in dataclasses.fields(stage))
    return {f.name: value for f, value in fields if value != f.default}


def _sum(precision: Precision) -> dict[str, Any]:
    _check_format(str(precision), str(precision.format))
    for name in ("onepass", "mean"):
        require(
            not getattr(precision, name),
            f"{precision}: its option {name} is not computed by apply_scales.py",
        )
    order, said = precision.summation, {"format": str(precision.format)}
    require(
        order.name in ORDERS,
        f"{precision}: the order {order} is not computed by apply_scales.py, which has pairwise, "
        "sequential and lanesK",
    )
    made: dict[str, Any] = said | ({} if precision.plain else {"order": str(order)})
    if order.name != "pairwise":
        made["lanes"] = order.width or 1
    return made | ({"input": True} if precision.input else {})


def _check_format(where: str, given: str | None) -> None:
    require(
        given in (None, *SIMPLE),
        f"{where} = {given!r} is not computed by apply_scales.py, which has {', '.join(SIMPLE)}",
    )


def weights_hash(weights: Iterable[Float[np.ndarray, "..."]]) -> str:
    """SHA-256 of weights in half precision, whatever their names and their order.

    Of a model in float16, and in float32, it is the same; apply_scales.py makes it of a model.
    """
    digests = []
    for weight in weights:
        with np.errstate(over="ignore"):
            half = np.ascontiguousarray(weight, np.float16)
        shape = ",".join(map(str, half.shape))
        digest = hashlib.sha256(f"{shape}:".encode())
        digest.update(half.data)
        digests.append(digest.hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


_BY_HEAD = ("scale", "inverse", "eps_over_s2")


def _spelled(scale: ModuleScale) -> dict[str, Any]:
    """As JSON has it: a number where there is one for all heads."""
    said = dataclasses.asdict(scale)
    one = scale.head_axis is None
    return said | {name: said[name][0] if one else list(said[name]) for name in _BY_HEAD}


def _read(name: str, told: dict[str, Any]) -> ModuleScale:
    listed = {n: v if isinstance(v := told.get(n), list) else [v] for n in _BY_HEAD}
    where = f"modules.{name}."
    made = build(ModuleScale, told | listed, where)
    choice(f"{where}kind", made.kind, KINDS)
    heads = len(made.scale)
    for part in _BY_HEAD:
        values = getattr(made, part)
        require(
            len(values) == heads and all(np.isfinite(v) and v >= 0 for v in values),
            f"{where}{part} = {told[part]}: expected a finite number ≥ 0, or one for each head",
        )
    require(
        made.head_axis is not None or heads == 1,
        f"{where}head_axis = null, and {heads} scales: expected the axis of the heads",
    )
    return made
