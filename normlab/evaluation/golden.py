"""Golden vectors of a datapath: rows of a real norm and corner cases, every stage, and a script."""

import dataclasses
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from normlab.config import field, require
from normlab.data.config import TextConfig
from normlab.evaluation import reproduce
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.evaluator import Evaluator
from normlab.evaluation.targets import TORCH, targets
from normlab.evaluation.texts import Texts
from normlab.model import Context
from normlab.model.by_layer import ByLayer
from normlab.norms import Norm, all_norms
from normlab.numerics import Accumulator, Datapath, DoesNotFit, datapaths
from normlab.numerics.accumulate import repeated
from normlab.numerics.eps import EpsForm
from normlab.numerics.exact import no_contract
from normlab.numerics.formats import FloatFormat, as_format, rounded, rounded_sum
from normlab.numerics.stage_counts import stage_format
from normlab.registry import choice

NORMS = ("rmsnorm", "layernorm")
STAGES = (
    *("input", "square", "lanes", "tree", "sum", "mean", "eps", "root"),
    *("product", "weight", "bias", "output"),
)
"""In the order in which a unit makes them."""
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class GoldenConfig:
    """Whose vectors, of which norm, and where they go."""

    datapath: str | None = field(None, "a registered datapath's name (`list datapaths`)")
    pretrained: str | None = field(None, "a pretrained model, by name, whose rows are taken")
    run: str | None = field(None, "or a run directory that `python -m train` wrote")
    site: str | None = field(None, "whose norm; null: the one with the largest |x|")
    rows: int = field(256, "rows of text; the corner cases come on top")
    data: TextConfig = field(TextConfig, "the text to be read")
    imports: tuple[str, ...] = field((), "your own files, [my_paths.py]: their datapaths are known")
    out: str | None = field(None, "directory for the vectors, which isn't there yet")

    def __post_init__(self) -> None:
        require(self.rows >= 1, f"rows = {self.rows}: expected a whole number ≥ 1, such as 256")


def write(config: GoldenConfig) -> tuple[Path, str]:
    """The directory that was written, whole or not at all, and what is in it.

    Raises:
        ValueError: no datapath or no directory asked for, one that is there, or a datapath that
            the script can't describe.
    """
    require(config.out is not None, "out: expected a directory for the vectors, such as out=golden")
    require(config.datapath is not None, "datapath: expected a name, see `list datapaths`")
    out, path = Path(str(config.out)), datapaths[str(config.datapath)]
    require(not out.exists(), f"out = {out} is there already: expected a directory that is not")
    path, said = described(path)
    norm, x = rows_of(config)
    inputs, corners = with_corners(x, path)
    told, values = vectors(path, norm, inputs)
    told |= {"corners": {name: config.rows + i for i, name in enumerate(corners)}, "notes": said}
    told |= {"site": norm.site.name, "rows": len(inputs), "model": config.pretrained or config.run}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        files(part, told, values)
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shown = ", ".join(f"{name} {about['format']}" for name, about in told["stages"].items())
    return out, f"{len(inputs)} rows of {norm.site.name}; {shown}" + "".join(f"\n{n}" for n in said)


def described(path: Datapath) -> tuple[Datapath, list[str]]:
    """The datapath with nothing left to a compiler, and what was pinned.

    Raises:
        DoesNotFit: a stage that the script doesn't know.
    """
    said = list[str]()
    formats = [path.format, *(as_format(getattr(path, f) or "fp32") for f in ("input", "product"))]
    if any(f.stochastic is not None for f in formats):
        raise DoesNotFit(
            f"datapath {path.name!r}: golden vectors are of datapaths without stochastic rounding, "
            "whose random bits are a unit's own"
        )
    if path.precision.plain and path.variance is None:
        path = dataclasses.replace(path, sum="fp32:pairwise")
        said.append("sum: fp32 in a compiler's own order; pinned to fp32:pairwise")
    if path.root.kind == "rsqrt":
        path = dataclasses.replace(path, root=dataclasses.replace(path.root, kind="sqrt"))
        said.append("root: a compiler's own rsqrt; pinned to sqrt")
    return path, said


def rows_of(config: GoldenConfig) -> tuple[Norm, np.ndarray]:
    """A norm and float32 rows [rows, d] that enter it in a float32 pass over text."""
    require(
        not str(config.pretrained).startswith(TORCH),
        f"pretrained={config.pretrained}: expected a model that JAX computes, such as hf:DIR",
    )
    asked = EvaluateConfig(pretrained=config.pretrained, run=config.run, data=config.data)
    target = targets(asked)[0]
    one = Evaluator(dataclasses.replace(asked, max_windows=1), target, Texts())
    length = one.windows.inputs.shape[1]
    windows = dataclasses.replace(asked, max_windows=-(-config.rows // length))
    evaluator = Evaluator(windows, target, Texts())
    model = evaluator.lm.model
    tokens = [t[None] for t in evaluator.windows.inputs]
    parts = [inputs for _, inputs in ByLayer(model, head=False)(_inputs, tokens)]
    found = {site: np.concatenate([np.asarray(p[site]) for p in parts]) for site in parts[0]}
    sites = {norm.site.name: norm for norm in all_norms(model) if norm.config.type in NORMS}
    require(bool(sites), f"{target.name}: expected norms of type {' or '.join(NORMS)}")
    largest = max(sites, key=lambda name: float(np.abs(found[name]).max()))
    name = largest if config.site is None else choice("site", config.site, sites)
    x = found[name].reshape(-1, found[name].shape[-1])
    return sites[name], x[np.linspace(0, len(x) - 1, config.rows).astype(int)]


@partial(jax.jit, static_argnums=(0, 1))
def _inputs(
    call: Callable[..., Array], graphdef: nnx.GraphDef[Any], state: Any, x: Array
) -> tuple[Array, dict[str, Array]]:
    """The inputs of a layer's norms, as `ByLayer` asks for them."""
    context = Context(capture=True)
    x = call(nnx.merge(graphdef, state), x, context)
    return x, context.inputs


def with_corners(x: np.ndarray, path: Datapath) -> tuple[np.ndarray, list[str]]:
    """The rows, and corner cases behind them with their names."""
    d, to = x.shape[-1], as_format(path.input or "fp32")
    one = np.ones(d, np.float32)
    spike, least = np.zeros(d, np.float32), max(to.smallest_subnormal, 2.0**-126)
    spike[d // 2] = 1
    corners = {
        "zeros": 0 * one,
        "ones": one,
        "signs": np.where(np.arange(d) % 2, -one, one),
        "one element": spike,
        "least value": least * one,
        "a square below the sum's least value": 2.0**-13 * one,
        "a sum that overflows fp16": 40 * one,
        "a square that overflows fp16": 300 * one,
        "largest value": np.float32(to.max) * spike,
        "infinity": np.where(spike, np.inf, one),
        "NaN": np.where(spike, np.nan, one),
    }
    return np.concatenate([x, np.array(list(corners.values()), np.float32)]), list(corners)


class _Trace(Accumulator):
    """An accumulator that keeps every stage; of a row that is mirrored both halves' squares."""

    def __init__(self, path: Datapath, mirrors: bool):
        super().__init__(path)
        self.mirrors = mirrors
        self.values: dict[str, Array] = {}

    def noted(self, stage: str, x: Array) -> Array:
        path = self.datapath
        if stage == "square":
            square = repeated(self._held(x * x, path.square), 1 + self.mirrors)
            self.values[stage] = terms = rounded(square, path.format)
            if path.precision.mean:
                terms = rounded(no_contract(terms * (1.0 / terms.shape[-1])), path.format)
            if path.summation.has_lanes:
                self.values |= _adds(terms, path)
        elif stage != "eps" or x.ndim:
            self.values[stage] = x
        return x


def _adds(terms: Array, path: Datapath) -> dict[str, Array]:
    """The lanes' sums, and every node of the tree over them, the root last."""
    order, to = path.summation, path.format
    wide = as_format(path.tree or str(to))
    with jax.enable_x64(to.is_float64 or wide.is_float64):
        terms = terms.astype(jnp.float64) if to.is_float64 else terms
        lanes = order.lanes(terms, to)
        parts = lanes.astype(jnp.float64) if wide.is_float64 else lanes
        nodes = _nodes(parts, wide, order.postfix)
    return {"lanes": lanes, "tree": nodes}


def _nodes(parts: Array, to: FloatFormat, postfix: str | None) -> Array:
    nodes = list[Array]()
    if postfix is None:
        while parts.shape[-1] > 1:
            parts = jnp.pad(parts, [(0, 0), (0, parts.shape[-1] % 2)])
            parts = rounded_sum(parts[:, ::2], parts[:, 1::2], to)
            nodes.append(parts)
        return jnp.concatenate(nodes, -1) if nodes else parts
    stack = list[Array]()
    for part in postfix.split("_"):
        if part == "a":
            right, left = stack.pop(), stack.pop()
            stack.append(rounded_sum(left, right, to))
            nodes.append(stack[-1])
        else:
            stack.append(parts[:, int(part), None])
    return jnp.concatenate(nodes, -1) if nodes else parts


def vectors(path: Datapath, norm: Norm, x: np.ndarray) -> tuple[dict[str, Any], Values]:
    """The description, and the values of every stage by name, `x` and what the norm stores.

    Raises:
        DoesNotFit: a norm that the datapath doesn't serve, or with ε elsewhere.
    """
    if norm.eps_form is not EpsForm.UNDER:
        raise DoesNotFit(f"eps_form = {str(norm.eps_form)!r}: golden vectors have ε under the root")

    @jax.jit
    def run(x: Array) -> dict[str, Array]:
        acc = _Trace(path, path.mirrored and not norm.config.center)
        y = acc.normalize(x, norm.config.eps, center=norm.config.center)
        gamma = None if norm.weight is None else norm.gamma_in(acc)
        return acc.values | {"output": acc.affine(y, gamma, norm.beta(), jnp.float32)}

    made = run(x)
    values = {name: np.asarray(made[name]) for name in STAGES if name in made}
    stored = {"weight_stored": norm.weight, "bias_stored": norm.bias}
    given = {name: np.asarray(p[...]) for name, p in stored.items() if p is not None}
    about = {name: {"format": _format(path, name), "shape": a.shape} for name, a in values.items()}
    unit = dataclasses.asdict(path) | {
        "sum_format": str(path.format),
        "row_in_sum_format": path.precision.input,
        "terms_over_d": path.precision.mean,
        "onepass": path.precision.onepass,
        "order": path.summation.name,
        "width": path.summation.width,
        "postfix": path.summation.postfix,
        "epsilon": norm.config.eps,
        "center": bool(norm.config.center),
        "stored_as_w": bool(norm.config.one_plus),
    }
    told = {"normlab": importlib.metadata.version("normlab"), "unit": unit, "stages": about}
    return told, {"x": x} | given | values


def _format(path: Datapath, stage: str) -> str:
    """In which a stage's values are written, the one that holds them all."""
    match stage:
        case "lanes" | "square":
            return str(path.format)
        case "tree":
            return path.tree or str(path.format)
        case _:
            return str(stage_format(path, stage))


def files(folder: Path, told: Mapping[str, Any], values: Values) -> None:
    """unit.json, vectors.npz, a hex file for each array, reproduce.py."""
    (folder / "unit.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    np.savez(folder / "vectors.npz", **values)  # type: ignore[arg-type]
    for name, array in values.items():
        form = told["stages"].get(name, {"format": "fp32"})["format"]
        digits = -(-(1 + sum(reproduce.bits_of(form))) // 4)
        lines = (f"{int(code):0{digits}x}" for code in reproduce.encoded(array, form).ravel())
        (folder / f"{name}.hex").write_text("\n".join(lines) + "\n")
    shutil.copyfile(reproduce.__file__, folder / "reproduce.py")
