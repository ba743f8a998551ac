"""Runs that belong together in a figure: they differ in learning rate and seed alone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.results.settings import RATE, differing, identity
from normlab.run import Run

TYPES = ("norm.type", "placement.type")
Line = dict[str, Any]
"""One look, a line of watch.jsonl."""


@dataclass(frozen=True)
class Series:
    """Runs that differ in learning rate and seed alone.

    Args:
        label: what sets them apart from the others: "peri", "dyt alpha=0.8".
        runs: by learning rate, in order.
    """

    label: str
    runs: dict[float, list[Run]]

    @property
    def best(self) -> float:
        """The learning rate with the lowest mean loss at the end; a diverged run's is infinite."""
        return min(self.runs, key=lambda rate: np.mean([last_loss(r) for r in self.runs[rate]]))

    @property
    def watched(self) -> list[Line]:
        """What was seen inside the first run at the best learning rate."""
        return self.runs[self.best][0].watched


def last_loss(run: Run) -> float:
    """Validation loss at the end; infinite for a run that diverged or failed."""
    losses = [row["valid_loss"] for row in run.metrics if "valid_loss" in row]
    ended = run.record.get("state") in ("finished", "stopped early")
    return losses[-1] if losses and ended else math.inf


def series(runs: Iterable[Run]) -> list[Series]:
    """Runs as they belong together, in the order in which they come, seeds and rates sorted.

    Runs that are under way are left out.
    """
    ended = [run for run in runs if run.ended or run.record.get("state") == "failed"]
    configs = [_identity(run) for run in ended]
    keys = [k for k in TYPES if len({config[k] for config in configs}) > 1]
    keys += [k for k in differing(configs) if k not in ("seed", RATE)]
    found: dict[str, Series] = {}
    pairs = zip(configs, ended, strict=True)
    for config, run in sorted(pairs, key=lambda pair: (pair[0][RATE], pair[0]["seed"])):
        label = _label(config, keys)
        rates = found.setdefault(label, Series(label, {})).runs
        rates.setdefault(config[RATE], []).append(run)
    return [found[label] for label in dict.fromkeys(_label(c, keys) for c in configs)]


def _identity(run: Run) -> dict[str, Any]:
    corpus = run.read("provenance.json").get("corpus") or {}
    return identity(run.read("config.yaml"), corpus.get("name"))


def _label(config: dict[str, Any], keys: Sequence[str]) -> str:
    def said(key: str) -> str:
        name, value = key.rpartition(".")[2], config[key]
        if isinstance(value, bool):
            return name if value else ""
        return str(value) if name == "type" else f"{name}={value}"

    said_of = [said(key) for key in keys if key in config]
    return " ".join(filter(None, said_of)) or " ".join(config[key] for key in TYPES)
