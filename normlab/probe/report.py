"""A finding in words: what was found, what can't be told apart, and how much was tested."""

import numpy as np

from normlab.numerics import Mean, Root
from normlab.numerics.eps import EpsForm
from normlab.probe.finding import Finding
from normlab.probe.kernel import Seen
from normlab.probe.stages import APART, FUSED, JOINED

WORDS = {
    EpsForm.UNDER: "under the root",
    EpsForm.ADDED: "added to the root",
    EpsForm.FLOOR: "the root's least value",
}

WAYS = {
    "": "",
    JOINED: ", by γ · 1/rms",
    FUSED: ", x·r − μ·r in a fused multiply-add",
    APART: ", x·r − μ·r in two products",
}


def report(found: Finding) -> str:
    """Terminal text; the verdict first."""
    lines = [f"{found.kernel}, {found.dtype}, d = {found.d}: {verdict(found)}", ""]
    told = stages(found)
    width = max(map(len, told))
    lines += [f"  {name:{width}}  {' or '.join(values)}" for name, values in told.items()]
    lines += ["", *notes(found)]
    if found.differs is not None and found.predicted is not None:
        lines += ["", smallest(found.differs, found.predicted)]
    return "\n".join(lines)


def verdict(found: Finding) -> str:
    """In a sentence: exact on what was tried, or the nearest of our datapaths."""
    tried = f"{found.random} random and {found.adversarial} adversarial rows"
    many = len(found.left)
    if found.exact:
        which = "one datapath" if many == 1 else f"{many} datapaths that no row told apart"
        return f"{which}; exact on {tried}"
    return f"no datapath of ours; the nearest ({many}) predicts {tried}"


def stages(found: Finding) -> dict[str, list[str]]:
    """Of each stage what it may be, over all that is left."""
    told: dict[str, dict[str, None]] = {}
    for a in found.left:
        path = a.path
        said = {
            "input": path.input,
            "square": path.square or ("as the sum" if a.sum.format != "fp32" else None),
            "sum": a.sum.told,
            "mean": mean(path.mean) if path.variance is None else "by the updates",
            "ε": f"{path.eps or 'float32'}, {WORDS[a.front.form]}"
            + (", by a fused multiply-add of Σ" if a.front.fused else ""),
            "root": root(path.root),
            "product": (path.product or "float32") + WAYS[a.tail.way],
            "weight": f"{path.weight or 'float32'}"
            + (", after the cast" if path.cast_first else ""),
            "output": path.output,
        }
        for name, value in said.items():
            told.setdefault(name, {})[value or "float32"] = None
    return {name: list(values) for name, values in told.items()}


def mean(of: Mean) -> str:
    """Of a mean."""
    kinds = {"reciprocal": "Σ · round(1/d)", "divide": "Σ / d", "shift": "Σ shifted"}
    return f"{kinds[of.kind]} in {of.format or 'float32'}"


def root(of: Root) -> str:
    """Of a root."""
    kinds = {
        "rsqrt": "XLA's rsqrt",
        "sqrt": "1/√, √ rounded first",
        "divide": "x / √",
        "table": f"table of {of.entries}" + (", interpolated" if of.interpolate else ""),
        "magic": "magic number",
    }
    steps = f", {of.newton} Newton step{'s' * (of.newton > 1)}" if of.newton else ""
    return f"{kinds[of.kind]}{steps} in {of.format or 'float32'}"


def notes(found: Finding) -> list[str]:
    """What was seen directly."""
    seen = found.observed
    came, left = seen.flush
    return [
        f"  norm: {'LayerNorm (the mean is taken off)' if seen.center else 'RMSNorm'}, "
        f"weight {'1 + w' if seen.one_plus else 'γ'}",
        f"  subnormal numbers: {came} at the input, {left} at the output",
        f"  a row's result {DEPENDS.format(seen.together) + seen.batch if seen.batch else BATCH}",
        f"  rows tried: {found.rows}",
    ]


DEPENDS = "depends on the batch (all else is of batches of {}): "
BATCH = "was the same alone, in other batches, in another order, beside a larger row"


def smallest(row: Seen, predicted: np.ndarray) -> str:
    """The smallest row that differs, in full where it is short."""
    x, y = row.x[0], row.y[0]
    at = np.flatnonzero(x)
    wrong = np.flatnonzero((y != predicted[0]) & ~(np.isnan(y) & np.isnan(predicted[0])))
    shown = ", ".join(f"x[{i}] = {x[i]:.9g}" for i in at[:6]) + (", …" if len(at) > 6 else "")
    first = wrong[0]
    return (
        f"  smallest row that differs: {len(at)} elements that aren't 0 ({shown}), "
        f"ε = {row.eps[0, 0]:.3g}\n"
        f"    y[{first}] = {y[first]:.9g}, predicted {predicted[0][first]:.9g}; "
        f"{len(wrong)} outputs differ"
    )
