"""A plan in words: which norms stay in float32, what that saves, and how a runtime is told."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from normlab.results.formats import grid
from normlab.results.record import Record
from normlab.results.table import difference, number

WORST = 5
"""Sites of which their damage alone is told."""
MOST_LISTED = 12
"""Modules and patterns that are written out."""


class Rise(NamedTuple):
    """How far a pass is from float32 on the same text; inf where it is not finite."""

    share: float
    """Perplexity over that of float32, less 1."""
    tokens: float
    """Mean |ΔNLL| of a scored token, in nats."""

    def within(self, budget: float) -> bool:
        """Whether perplexity is no further away than a share of it."""
        return abs(self.share) <= budget


@dataclass(frozen=True)
class Plan:
    """Which norms of one model one column needs in float32.

    Args:
        model: its name.
        column: what was planned for, no site kept.
        modules: the kept norms by the ends of their names in Hugging Face's models; none of a run.
        budget: how far perplexity may be from that of fp32, as a share of it.
        sites: all of them.
        keep_fp32: those that stay.
        alone: by site how far it alone leads away; empty where nothing had to be searched.
        search: with the kept sites, on the text that they were chosen on.
        exact, before, after: records of fp32, of the column as it is and with the kept sites, on
            the text that was asked for.
    """

    model: str
    column: str
    modules: list[str]
    budget: float
    sites: list[str]
    keep_fp32: list[str]
    alone: dict[str, Rise]
    search: Rise
    exact: Record
    before: Record
    after: Record

    @property
    def chosen(self) -> bool:
        """Whether the sites hold the budget where they were chosen."""
        return self.search.within(self.budget)

    @property
    def confirmed(self) -> bool:
        """Whether they hold it on the text that was asked for."""
        return abs(_share(self.after)) <= self.budget

    @property
    def nodes(self) -> list[str]:
        """Patterns of the kept norms' nodes in a graph that torch.onnx.export traced."""
        return [f"*/{_scope(module)}/*" for module in self.modules]

    def told(self) -> dict[str, Any]:
        """For plan.json."""
        values = asdict(self) | {"onnx_nodes": self.nodes}
        values["alone"] = {site: rise._asdict() for site, rise in self.alone.items()}
        values["search"] = self.search._asdict()
        values["chosen"], values["confirmed"] = self.chosen, self.confirmed
        for name in ("exact", "before", "after"):
            record: Record = getattr(self, name)
            values[name] = {"key": record.key} | {
                "precision": record.precision,
                "perplexity": record.result.perplexity,
                "delta": record.comparison.delta,
                "delta_stderr": record.comparison.delta_stderr,
            }
        return values


def _scope(module: str) -> str:
    """`layers.3.self_attn.q_norm` as the exporter writes it: a list's index stays at its name."""
    parts: list[str] = []
    for part in module.split("."):
        if part.isdigit():
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return "/".join(parts)


def _share(record: Record) -> float:
    """Perplexity over that of float32, less 1; inf where it is not finite."""
    value, delta = record.result.perplexity, record.comparison.delta
    if value is None or delta is None or not math.isfinite(value):
        return math.inf
    return delta / (value - delta)


def report(plans: Sequence[Plan]) -> str:
    """The answer for each column in a line, the table, what a runtime is told, what it covers."""
    parts = ["\n".join(answer(plan) for plan in plans), grid([HEAD, *map(_row, plans)])]
    told = [plan for plan in plans if plan.keep_fp32 and plan.chosen]
    parts += map(_lists, told)
    if any(plan.modules for plan in told):
        parts.append(RUNTIMES)
    return "\n\n".join([*parts, _legend(plans[0])])


def answer(plan: Plan) -> str:
    """How many norms stay, and what that gives."""
    name, total = f"{plan.model} {plan.column}", len(plan.sites)
    if not plan.chosen:
        return (
            f"{name}: over the budget even with all {total} norms in float32. What breaks is no "
            "norm's arithmetic: `python -m evaluate ranges` says which tensors leave the format."
        )
    held = "confirmed" if plan.confirmed else "NOT confirmed: raise search_windows"
    if not plan.keep_fp32:
        return f"{name}: no norm must stay in float32 ({held}: {_moved(plan.after)})."
    return f"{name}: {len(plan.keep_fp32)} of {total} norms stay in float32 ({held})."


HEAD = ("model", "column", "in float32", "perplexity, fp32", "none in float32", "with the plan")


def _row(plan: Plan) -> list[str]:
    kept = f"{len(plan.keep_fp32)} of {len(plan.sites)}"
    exact = plan.exact.result.perplexity
    shown = number(exact) if exact is not None else ""
    return [plan.model, plan.column, kept, shown, _moved(plan.before), _moved(plan.after)]


def _moved(record: Record) -> str:
    """A perplexity and its difference to float32."""
    value, other = record.result.perplexity, record.comparison
    if value is None:
        return record.status
    if other.delta is None or not math.isfinite(other.delta):
        return number(value)
    return f"{number(value)} ({difference(other.delta, other.delta_stderr)})"


def _lists(plan: Plan) -> str:
    """The kept sites as each runtime names them."""
    worst = sorted(plan.alone, key=lambda site: plan.alone[site].tokens, reverse=True)[:WORST]
    alone = ", ".join(f"{site} {plan.alone[site].tokens:.3g}" for site in worst)
    kept = [
        f"### {plan.model} {plan.column}",
        f"Mean |ΔNLL| in nats with one norm alone narrow, the worst: {alone}.",
        f"    keep_fp32=[{','.join(plan.keep_fp32)}]",
    ]
    if plan.modules:
        kept += ["Hugging Face modules (ends of their names): " + _listed(plan.modules)]
        kept += ["ONNX nodes (patterns): " + _listed(plan.nodes)]
    return "\n\n".join(kept)


def _listed(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all, in plan.json)" if len(names) > MOST_LISTED else ""
    return ", ".join(f"`{name}`" for name in names[:MOST_LISTED]) + more


RUNTIMES = """\
### In a runtime

Nodes have these names with `torch.onnx.export(…, dynamo=False)`; its newer exporter keeps the \
module in a node's metadata, `pkg.torch.onnx.name_scopes`.

TensorRT, on the network that was parsed from the ONNX file, with `patterns` the list above (not \
run here: it needs a GPU):

    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if any(fnmatch(layer.name, pattern) for pattern in patterns):
            layer.precision = trt.float32

OpenVINO reads it from the IR: in the XML each layer whose name matches gets \
`<rt_info><attribute name="precise" version="0"/></rt_info>`. Seen with 2026.4 on a CPU: products \
obey; a norm that it fuses into one RMS operation loses the mark."""


def _legend(plan: Plan) -> str:
    text, read = plan.after.text, plan.exact.result
    return (
        f"Budget: perplexity within {100 * plan.budget:g} % of fp32. Sites were chosen on "
        "validation text: each norm's damage alone, the fewest of the worst, then those given back "
        f"that could be. Confirmed on {text.split}, {len(read.window_tokens)} windows of "
        f"{text.window} tokens: Δ to fp32 ± its paired standard error. Only norms' arithmetic is "
        "narrow, unless the column says @fp16. plan.json has every site's damage."
    )
