"""`python -m evaluate list`: what there is to choose from, each name with a line."""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normlab.commands.errors import as_typed, explained
from normlab.commands.groups import CONFIGS
from normlab.evaluation.claims import metrics
from normlab.evaluation.protocols import protocols
from normlab.model import placements
from normlab.norms import norms
from normlab.numerics import datapaths
from normlab.numerics.formats import FORMAT_OPTIONS, FORMATS, FloatFormat
from normlab.numerics.orders import ALL_ORDERS, SUMS
from normlab.pretrained import PACKAGES
from normlab.pretrained.families import architectures, families
from normlab.probe.adapters import KERNELS
from normlab.registry import Registry, choice
from normlab.scaling import scale_rules
from normlab.training.optimizers import optimizers
from normlab.transforms import transforms

Row = tuple[str, str]
"""A name, and what is said of it in a line."""


class Kind(NamedTuple):
    """One kind of thing.

    Args:
        means: what it is, in half a sentence.
        used: how a name is written on a command line.
        rows: finds all of the kind.
    """

    means: str
    used: str
    rows: Callable[[], Iterable[Row]]


def main(arguments: list[str] | None = None, console: Console | None = None) -> None:
    """Print every kind, or the one asked for: plain lines in a pipe, tables on a terminal."""
    parser = argparse.ArgumentParser(prog="python -m evaluate list", description=__doc__)
    parser.add_argument("kind", nargs="?", help=f"one of {', '.join(KINDS)}; none: all")
    asked = parser.parse_args(arguments).kind
    with explained():
        for name in [choice("kind", asked, KINDS)] if asked else KINDS:
            _print(name, console or Console())


def _print(name: str, console: Console) -> None:
    if not console.is_terminal:
        print(_plain(name), flush=True)
        return
    console.print(Text.assemble((name, "bold"), f": {KINDS[name].means}"))
    console.print(Text(f"  {as_typed(KINDS[name].used)}", "dim"))
    console.print(_table(name))


def _plain(name: str) -> str:
    kind = KINDS[name]
    rows = list(kind.rows())
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:{width}}  {text}" for name, text in rows]
    return "\n".join([f"{name} ({kind.means}): {as_typed(kind.used)}", *lines, ""])


def _table(name: str) -> Table:
    made = Table("", "", box=None, show_header=False, padding=(0, 0, 0, 2))
    for row in KINDS[name].rows():
        made.add_row(*map(Text, row))
    made.add_row()
    return made


def line(thing: Any) -> str:
    """What a registered thing says of itself: its card, else its docstring's first sentence."""
    card = getattr(thing, "card", None)
    if card is not None:
        return f"{card.title}: {card.formula}"
    paragraph = " ".join((thing.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0].rstrip(".")


def _registered(registry: Registry[Any], group: str | None = None) -> Iterator[Row]:
    """All of a registry, then what files of configs/GROUP add to it."""
    yield from ((name, line(registry[name])) for name in registry)
    yield from _files(group) if group else ()


def _files(group: str) -> Iterator[Row]:
    """The YAML files of a group, each with its first line of comment."""
    for file in sorted((CONFIGS / group).glob("*.yaml")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in lines if not line.startswith("# @")]
        yield file.stem, said[0].removeprefix("# ").rstrip(".") if said else ""


def _formats() -> Iterator[Row]:
    for name in FORMATS:
        f = FloatFormat.parse(name)
        bits = f"{f.exponent} exponent bits, {f.mantissa} mantissa bits"
        small = f"smallest normal 2^{f.min_exponent}, smallest 2^{f.min_exponent - f.mantissa}"
        yield name, f"{bits}; largest {f.max:.5g}, {small}"
    yield "eXmY", "any other with X exponent and Y mantissa bits, such as e4m7"
    yield "." + ", .".join(FORMAT_OPTIONS), "options of each, such as fp16.flush"


def _orders() -> Iterator[Row]:
    for written, sum_ in zip(ALL_ORDERS, SUMS.values(), strict=True):
        yield written, line(sum_)


def _protocols() -> Iterator[Row]:
    for name in protocols:
        yield name, line(protocols[name].cut)


def _pretrained() -> Iterator[Row]:
    for name, package in PACKAGES.items():
        wheels = ", ".join(w.partition("==")[0] for w in package.wheels)
        yield name, f"{package.file} ({package.license}), which pip brings: {wheels}"
    yield "hf:DIR", f"a folder of safetensors: {', '.join(families)}"
    yield "gguf:FILE", f"a GGUF file: {', '.join(architectures())}"


KINDS = {
    "norms": Kind(
        "what normalizes a row, the vector of one token",
        "python -m train norm=NAME",
        lambda: _registered(norms, "norm"),
    ),
    "placements": Kind(
        "where norms stand around attention and MLP",
        "python -m train placement=NAME",
        lambda: _registered(placements, "placement"),
    ),
    "optimizers": Kind(
        "how gradients become steps, each with a schedule",
        "python -m train optimizer=NAME optimizer.schedule=wsd",
        lambda: _registered(optimizers),
    ),
    "models": Kind("shapes to train", "python -m train model=NAME", lambda: _files("model")),
    "data": Kind("texts", "python -m train data=NAME", lambda: _files("data")),
    "experiments": Kind(
        "sweeps and settings behind the result pages",
        "python -m train experiment=NAME",
        lambda: _files("experiment"),
    ),
    "claims": Kind(
        "what papers say, as experiments",
        "python -m evaluate claims NAME",
        lambda: _files("claims"),
    ),
    "metrics": Kind(
        "what a claim compares", "metric: NAME, in a claim's file", lambda: _registered(metrics)
    ),
    "pretrained": Kind(
        "models trained elsewhere", "python -m evaluate pretrained=NAME", _pretrained
    ),
    "formats": Kind(
        "of numbers, in which a norm's sum is made",
        "python -m evaluate … precision=[FORMAT,…]",
        _formats,
    ),
    "orders": Kind(
        "in which a norm's sum adds the elements of a row",
        "python -m evaluate … precision=[FORMAT:ORDER,…]",
        _orders,
    ),
    "datapaths": Kind(
        "norm units, every stage with its format",
        "python -m evaluate … precision=[DATAPATH,…]",
        lambda: [(name, datapaths[name].source) for name in datapaths],
    ),
    "kernels": Kind(
        "norms of other libraries, whose arithmetic a probe finds",
        "python -m evaluate probe KERNEL dtype=bfloat16 d=768",
        lambda: KERNELS.items(),
    ),
    "rules": Kind(
        "how s is chosen, by which a norm's input is divided to fit the format",
        "python -m evaluate … precision=[FORMAT+RULE,…]",
        lambda: _registered(scale_rules),
    ),
    "transforms": Kind(
        "rewrites of a trained model",
        "python -m evaluate … transform=[NAME,…] (or a norm's name)",
        lambda: _registered(transforms),
    ),
    "protocols": Kind(
        "how a text becomes windows, and which tokens are scored",
        "python -m evaluate … protocol=NAME",
        _protocols,
    ),
}
"""What can be asked for by name."""
