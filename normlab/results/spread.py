"""Runs that differ in their seed alone: mean and spread, the best learning rate, significance."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normlab.results.fields import ModelInfo
from normlab.results.record import GOOD, NOT_APPLICABLE, OK, Record, latest
from normlab.results.settings import RATE, differing, identity, shown
from normlab.results.table import Cell, by_text, number, tables, with_error

LEGEND = (
    "Mean ± standard deviation over seeds. Δ is the mean over seeds of the difference to fp32. p: "
    "Welch's t test of the fp32 log-perplexity against the row marked *, the lowest mean of rows "
    "all of whose seeds ended well; not corrected for how many rows there are. "
    "best of N: of N learning rates the one with the lowest validation loss (mean over seeds); "
    "lowest, highest: at that edge of what was tried, so that a better one may lie beyond."
)


@dataclass(frozen=True)
class Group:
    """Runs of one config over seeds.

    Args:
        config: what they share, flat.
        records: by precision, one record a seed.
        rates: the learning rates of all groups that it was chosen from.
    """

    config: dict[str, Any]
    records: dict[str, list[Record]]
    rates: tuple[float, ...] = ()

    @property
    def model(self) -> ModelInfo:
        """One of its models, for what all have in common."""
        return next(iter(self.records.values()))[0].model

    @property
    def logs(self) -> list[float]:
        """Log-perplexity in fp32 of each seed that has one."""
        return list(self.log_by_seed.values())

    @property
    def log_by_seed(self) -> dict[int | None, float]:
        """The same by seed."""
        good = [r for r in self.records.get("fp32", []) if r.status == OK]
        found = {r.model.seed: Cell.of(r).value for r in good}
        return {s: math.log(p) if p else math.nan for s, p in found.items() if p is not None}

    @property
    def sound(self) -> bool:
        """Whether every seed ended well, with a number."""
        records = self.records.get("fp32", [])
        return all(r.status == OK for r in records) and bool(np.isfinite(self.logs).all())

    @property
    def ranked(self) -> bool:
        """Whether it can be compared: several seeds, all of which ended well."""
        return self.sound and len(self.logs) > 1

    @property
    def valid_loss(self) -> float:
        """Mean best validation loss over seeds; infinite where a seed has none or diverged."""
        found = [_training(r).get("best_valid_loss") for r in self.records.get("fp32", [])]
        known = [loss for loss in found if loss is not None]
        return float(np.mean(known)) if self.sound and len(known) == len(found) else math.inf

    def setting(self, key: str) -> str:
        """A field of its config; of the learning rate also what it was chosen from."""
        if key not in self.config:
            return ""
        value = self.config[key]
        text = str(shown(value))
        if key != RATE or len(self.rates) < 2:
            return text
        chosen = "best" if math.isfinite(self.valid_loss) else "first"
        sides = {min(self.rates): ", lowest", max(self.rates): ", highest"}
        return f"{text} ({chosen} of {len(self.rates)}{sides.get(value, '')})"

    def cell(self, precision: str) -> str:
        """What a table says of one precision."""
        records = self.records.get(precision, [])
        bad = Counter(r.status for r in records if r.status != OK)
        if set(bad) == {NOT_APPLICABLE}:
            return NOT_APPLICABLE
        good = [r for r in records if r.status == OK]
        cells = [Cell.of(r) for r in good]
        values = [c.value if precision == "fp32" else c.delta for c in cells]
        parts = [_spread(values, signed=precision != "fp32")] if good else []
        overflowed = sum(r.ranges.overflowed_rows or 0 for r in good)
        parts += [f"overflow {overflowed:,}"] * bool(overflowed)
        return "; ".join(parts + [f"{n} {status}" for status, n in bad.items()])


def groups(records: Iterable[Record]) -> list[Group]:
    """The records of training runs by config, as they come; pretrained models have no seed.

    Of two records of one seed and precision the later one counts: a run made twice is one run.
    Records of every checkpoint of a run are left out: they are no seeds.
    """
    found: dict[str, Group] = {}
    for record in records:
        config = record.model.facts.get("config")
        if config is None or record.model.facts.get("checkpoints"):
            continue
        corpus = (record.model.facts.get("training_provenance") or {}).get("corpus") or {}
        flat = identity(config, corpus.get("name")) | {"transform": record.model.transform}
        flat.pop("seed", None)
        group = found.setdefault(json.dumps(flat, sort_keys=True), Group(flat, {}))
        rows = group.records.setdefault(record.precision, [])
        rows[:] = [r for r in rows if r.model.seed != record.model.seed] + [_as_ended(record)]
    return list(found.values())


def best_rates(found: Sequence[Group]) -> list[Group]:
    """Of groups that differ in the learning rate alone, the one with the lowest validation loss."""
    alike: dict[str, list[Group]] = {}
    for group in found:
        rest = json.dumps({k: v for k, v in group.config.items() if k != RATE}, sort_keys=True)
        alike.setdefault(rest, []).append(group)
    return [
        replace(
            min(tried, key=lambda group: group.valid_loss),
            rates=tuple(g.config[RATE] for g in tried if RATE in g.config),
        )
        for tried in alike.values()
    ]


def spreads(
    records: Iterable[Record], precisions: Sequence[str]
) -> list[tuple[str, list[list[str]]]]:
    """(title, lines) for each text and way of reading it where a config has several seeds.

    Numbers that don't compare never share a table, as in `normlab.results.table.tables`.
    """
    found = [
        (tables(group)[0].title, lines(group, precisions))
        for group in by_text(latest(records))
        if any(r.status == OK for r in group)  # the others are rows of the first tables
    ]
    return [(title, made) for title, made in found if made]


def lines(records: Iterable[Record], precisions: Sequence[str]) -> list[list[str]]:
    """A head and a line for each config, at its best learning rate; none where all seeds are one.

    Args:
        records: of one text; those of training runs count.
        precisions: the columns.
    """
    found = groups(records)
    if all(len(g.records.get("fp32", [])) < 2 for g in found):
        return []
    found, asked = best_rates(found), list(dict.fromkeys(["fp32", *precisions]))
    settings = differing(g.config for g in found)
    settings += [RATE] * (RATE not in settings and any(len(g.rates) > 1 for g in found))
    columns = ["norm", "placement", *settings, "seeds", *asked[:1]]
    columns += [f"{p} (Δ)" for p in asked[1:]] + ["p"]
    made = [columns]
    for group, p in zip(found, tests(found), strict=True):
        seeds = len(group.records.get("fp32", []))
        told = [group.setting(key) for key in settings]
        cells = [group.cell(p) for p in asked]
        head = [group.model.norm or "", group.model.placement or "", *told, str(seeds)]
        made.append([*head, *cells, p])
    return made


def tests(found: Sequence[Group]) -> list[str]:
    """For each group the p of the test against the best one; "*" for that, "" without a test."""
    ranked = [g for g in found if g.ranked]
    best = min(ranked, key=lambda g: float(np.mean(g.logs)), default=None)
    return ["*" if group is best else _welch(group, best) for group in found]


def _welch(group: Group, best: Group | None) -> str:
    """Welch's t test (Welch 1947): p of the difference of the means, variances unequal."""
    if best is None or min(len(group.logs), len(best.logs)) < 2:
        return ""
    from scipy import stats  # more than a second to import

    p = stats.ttest_ind(group.logs, best.logs, equal_var=False).pvalue
    return f"{p:.2g}"


def _spread(values: Sequence[float | None], signed: bool) -> str:
    known = np.array([v for v in values if v is not None], float)
    if not len(known):
        return ""
    with np.errstate(invalid="ignore"):
        mean, sd = float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else math.nan
    if math.isfinite(sd) and sd > 0:
        return with_error(mean, sd, "+" if signed else "")
    text = f"{mean:+.3g}" if signed else number(mean)
    return text if len(known) < 2 else f"{text} ± {sd:.2g}"


def _as_ended(record: Record) -> Record:
    """A run that ended badly, or not yet, is no seed like the others, though it has a number."""
    state = _training(record).get("state", GOOD[0])
    said = "unfinished" if state == "running" else state
    return record if state in GOOD or record.status != OK else replace(record, status=said)


def _training(record: Record) -> dict[str, Any]:
    return record.model.facts.get("training") or {}
