"""Methods at several sizes: their losses against compute, and where their ranking flips."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from normlab.results.labels import Labels
from normlab.results.record import GOOD
from normlab.results.settings import RATE, decides

FLOPS = 6
"""Of training, for each parameter and token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""


@dataclass(frozen=True)
class Point:
    """One method at one size, at the rate with the lowest mean loss.

    Args:
        model: the fields of its config by which its size is told; methods differ in a few
            parameters at the same size.
        parameters: of the model.
        flops: 6 · parameters · tokens seen.
        losses: best validation loss of each seed, in nats; inf of one that did not end well.
    """

    model: str
    parameters: int
    flops: float
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.losses))


def by_size(runs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, list[Point]]:
    """Each method's points, by size; empty where all runs have one size.

    Args:
        runs: of each run its config, flat, and its record.
    """
    kept = [(config, record) for config, record in runs if record.get("parameters")]
    labels, found = Labels([_method(config) for config, _ in kept]), dict[str, _Sizes]()
    for config, record in kept:
        sizes = found.setdefault(labels.method(_method(config)), {})
        seeds = sizes.setdefault(_size(config), {}).setdefault(config[RATE], [])
        flops = FLOPS * record["parameters"] * record.get("tokens_seen", 0)
        loss = record.get("best_valid_loss") if record.get("state") in GOOD else None
        loss = math.inf if loss is None else float(loss)
        seeds.append(Point(_size(config), record["parameters"], float(flops), (loss,)))
    made = {
        name: sorted(map(_best, sizes.values()), key=lambda point: point.parameters)
        for name, sizes in found.items()
    }
    several = len({point.model for points in made.values() for point in points}) > 1
    return made if several else {}


_Sizes = dict[str, dict[float, list[Point]]]
"""By size and rate a point for each seed."""


def _size(config: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in config.items() if k.startswith("model.")}, sort_keys=True)


def _method(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a method is beside its size, rate and seed."""
    own = {k: v for k, v in config.items() if decides(k) and not k.startswith("model.")}
    return json.loads(json.dumps({k: v for k, v in own.items() if k not in (RATE, "seed")}))


def _best(rates: Mapping[float, Sequence[Point]]) -> Point:
    """The seeds of the best rate in one point."""
    seeds = min(rates.values(), key=lambda seeds: np.mean([seed.mean for seed in seeds]))
    losses = tuple(loss for seed in seeds for loss in seed.losses)
    return replace(seeds[0], flops=max(seed.flops for seed in seeds), losses=losses)


def flips(methods: Mapping[str, Sequence[Point]]) -> list[str]:
    """Between which sizes two methods change places, a line each; where none do, that is said."""
    names, said = list(methods), []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            said += _flips(one, other, methods)
    if said or len(names) < 2:
        return said
    return ["The ranking is the same at every size."]


def _flips(one: str, other: str, methods: Mapping[str, Sequence[Point]]) -> list[str]:
    theirs = {point.model: point.mean for point in methods[other]}
    both = [(p.parameters, p.mean, theirs[p.model]) for p in methods[one] if p.model in theirs]
    said = []
    for (small, a, b), (large, c, d) in pairwise(both):
        if (a - b) * (c - d) < 0:
            first, second = (one, other) if a < b else (other, one)
            said.append(
                f"{first} is ahead at {small:,} parameters, {second} at {large:,}: means over "
                f"{len(methods[one][0].losses)} seed(s)."
            )
    return said
