"""`python -m train tune`: each method's learning rate, by a grid that grows at its edge."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser

from normlab.commands import compile_cache
from normlab.commands.errors import explained
from normlab.commands.help import print_help
from normlab.commands.launch import composed
from normlab.progress import console, sweep
from normlab.results.formats import grid
from normlab.results.settings import RATE
from normlab.training.config import TrainConfig
from normlab.training.trainer import train
from normlab.training.tuning import Tuned, check, final_loss, grown

EXAMPLES = """
python -m train tune norm=rmsnorm,dyt placement=pre,peri optimizer.lr=2e-3,4e-3 seed=0,1,2
python -m evaluate runs=runs compare_to=rmsnorm-pre            then: each at its best rate
"""
SEED = "seed"


def main(arguments: Sequence[str]) -> None:
    """Tune every combination of what has several values, but for rate and seed; print the rates."""
    if {"-h", "--help"} & set(arguments):
        print_help("tune", TrainConfig, EXAMPLES)
        return
    with explained():
        compile_cache.use()
        swept = values(arguments)
        rates = [_rate(text) for text in swept.pop(RATE, ())]
        check(rates)
        seeds = swept.pop(SEED, ["0"])
        methods = list(itertools.product(*([f"{k}={v}" for v in vs] for k, vs in swept.items())))
        runs, found = _Runs(len(methods) * len(rates) * len(seeds)), list[Tuned]()
        for method in methods:
            said = " ".join(o for o in method if len(swept[o.partition("=")[0]]) > 1)
            found.append(Tuned(said or "the method", _losses(said, method, rates, seeds, runs)))
            console.print(_line(found[-1]))
        print(report(found))


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{RATE} = {text!r}: expected a number") from None


def values(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Each override's values, several where it is a sweep."""
    found: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        several = override.is_sweep_override()
        text = override.input_line or ""
        found[override.key_or_group] = (
            list(override.sweep_string_iterator()) if several else [text.partition("=")[2]]
        )
    return found


@dataclass
class _Runs:
    """How many there will be, as far as it is known: a grid may grow."""

    known: int
    begun: int = 0


def _losses(
    said: str, method: Sequence[str], rates: Sequence[float], seeds: Sequence[str], runs: _Runs
) -> dict[float, float]:
    """By rate the mean over seeds of the best validation loss, inf where a run ended badly.

    Args:
        said: of the method what sets it apart, for the line of its progress.
        method: its overrides.
        rates: the grid to begin with.
        seeds: of each rate's runs.
        runs: those of all methods.
    """

    def loss(rate: float) -> float:
        runs.known += len(seeds) * (rate not in rates)
        return sum(trained(rate, seed) for seed in seeds) / len(seeds)

    def trained(rate: float, seed: str) -> float:
        own = [f"{RATE}={rate!r}", f"{SEED}={seed}"]
        runs.begun += 1
        sweep.begin(runs.begun, runs.known, f"{said} lr={rate:g} seed={seed}".strip())
        overrides = [*method, *own]
        return final_loss(train(composed("train", TrainConfig, overrides), overrides).record)

    return grown(loss, rates)


def _line(tuned: Tuned) -> str:
    tried = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in sorted(tuned.losses.items()))
    return f"{tuned.method}: validation loss by rate {tried}"


def report(found: Sequence[Tuned]) -> str:
    """A line for each method: its best rate, how many were tried, whether the best lies inside."""
    head = ["method", "best rate", "validation loss", "rates tried", "best lies inside"]
    lines = [[t.method, *_cells(t), str(len(t.losses)), "yes" if t.inside else "NO"] for t in found]
    return grid([head, *lines])


def _cells(tuned: Tuned) -> list[str]:
    if tuned.best is None:
        return ["none", "diverged"]
    return [f"{tuned.best:g}", f"{tuned.losses[tuned.best]:.4f}"]
