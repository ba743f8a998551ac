"""Runs that belong together in a figure: they differ in learning rate and seed alone."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.results.labels import Labels
from normlab.results.record import GOOD
from normlab.results.settings import RATE, identity
from normlab.runs.run import Run

Line = dict[str, Any]
"""One look, a line of diagnostics.jsonl."""


@dataclass(frozen=True)
class Series:
    """Runs that differ in learning rate and seed alone.

    Args:
        label: what sets them apart from the others: "peri", "dyt, alpha 0.8".
        runs: by learning rate, in order.
    """

    label: str
    runs: dict[float, list[Run]]

    @property
    def best(self) -> float:
        """The learning rate with the lowest mean of best validation losses, as a table chooses."""
        return min(self.runs, key=lambda rate: np.mean([best_loss(r) for r in self.runs[rate]]))

    @property
    def diagnostics(self) -> list[Line]:
        """What was seen inside the first run at the best learning rate."""
        return self.runs[self.best][0].diagnostics


def last_loss(run: Run) -> float:
    """Validation loss at the end; infinite for a run that diverged or failed."""
    losses = [row["valid_loss"] for row in run.metrics if "valid_loss" in row]
    return losses[-1] if losses and run.record.get("state") in GOOD else math.inf


def best_loss(run: Run) -> float:
    """Its lowest validation loss; infinite for a run that has none, diverged or failed."""
    loss = run.record.get("best_valid_loss")
    return loss if loss is not None and run.record.get("state") in GOOD else math.inf


def series(runs: Iterable[Run]) -> list[Series]:
    """Runs as they belong together, in the order in which they come, seeds and rates sorted.

    Runs that are under way are left out.
    """
    ended = [run for run in runs if run.ended or run.record.get("state") == "failed"]
    configs = [_identity(run) for run in ended]
    labels = Labels(configs)
    found = {_alike(config): Series(labels.method(config), {}) for config in configs}
    pairs = zip(configs, ended, strict=True)
    for config, run in sorted(pairs, key=lambda pair: (pair[0][RATE], pair[0]["seed"])):
        found[_alike(config)].runs.setdefault(config[RATE], []).append(run)
    return list(found.values())


def _alike(config: dict[str, Any]) -> str:
    """What runs of one series share: all of an identity but learning rate and seed."""
    shared = {key: value for key, value in config.items() if key not in ("seed", RATE)}
    return json.dumps(shared, sort_keys=True)


def _identity(run: Run) -> dict[str, Any]:
    corpus = run.read("provenance.json").get("corpus") or {}
    return identity(run.read("config.yaml"), corpus.get("name"))
