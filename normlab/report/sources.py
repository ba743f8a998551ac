"""What a report is made of: run directories and records, found and read."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from normlab.results import Record, RecordFile, latest
from normlab.results.fields import ModelInfo, Result, TextInfo
from normlab.results.labels import Labels
from normlab.results.record import GOOD, OK
from normlab.results.settings import flattened, identity, of_run
from normlab.runs.run import Run, is_run

RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Trained:
    """A training run, read from its directory.

    Args:
        name: its directory's name.
        config: config.yaml, flat: dotted field → value.
        asked: the overrides that it was started with.
        record: how it stands, and its results.
        metrics: what was logged, a row a logged step.
        diagnostics: what was seen inside the model, if it was asked for.
        provenance: its text, and by what it was trained.
    """

    name: str
    config: dict[str, Any]
    asked: Sequence[str]
    record: dict[str, Any]
    metrics: Sequence[dict[str, Any]]
    diagnostics: Sequence[dict[str, Any]]
    provenance: dict[str, Any]

    @classmethod
    def read(cls, directory: Path) -> "Trained":
        """The run in a directory.

        Raises:
            ValueError: a file that can't be read, by its name.
        """
        run = Run(directory)
        return cls(
            name=directory.resolve().name,
            config=flattened(run.read("config.yaml")),
            asked=run.read("overrides.yaml") or [],
            record=run.record,
            metrics=run.metrics,
            diagnostics=run.diagnostics,
            provenance=run.read("provenance.json"),
        )

    @classmethod
    def of_record(cls, r: Record) -> "Trained":
        """What an evaluation's record says of the run that it evaluated; no metrics."""
        facts = r.model.facts
        config, (state, _, reason) = flattened(facts["config"]), r.status.partition(": ")
        ended = {"state": GOOD[0] if state == OK else state} | (
            {"reason": reason} if reason else {}
        )
        record, told = facts.get("training", ended), facts.get("training_provenance", {})
        return cls(r.model.name, config, (), record, (), (), told)

    @property
    def state(self) -> str:
        """How it ended, or "unfinished"."""
        state = self.record.get("state", "running")
        return "unfinished" if state == "running" else state

    @property
    def ended_well(self) -> bool:
        """Whether there is nothing to be said against its numbers."""
        return self.state in GOOD

    @property
    def why(self) -> str:
        """How it ended, and the reason where it is known: "diverged after 20 steps"."""
        reason, steps = self.record.get("reason"), self.record.get("steps")
        after = f" after {steps:,} steps" if steps is not None else ""
        return f"{self.state}: {reason}" if reason else f"{self.state}{after}"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its result depends on, flat, the text by its own name."""
        return identity(self.config, self.provenance.get("corpus", {}).get("name"))

    @property
    def best_loss(self) -> float | None:
        """Its best validation loss, where it has one that is a number."""
        loss = self.record.get("best_valid_loss")
        return loss if loss is not None and math.isfinite(loss) else None

    @property
    def validated(self) -> Record:
        """What training itself measured, as an evaluation would record it."""
        corpus, c = self.provenance.get("corpus", {}), self.config
        title = corpus.get("title", corpus.get("name", c.get("data.corpus", "a text")))
        loss = self.best_loss
        return Record(
            key=self.name,
            precision="fp32",
            model=ModelInfo(
                self.name,
                c.get("norm.type"),
                c.get("placement.type"),
                seed=c.get("seed"),
                facts={
                    "config": self.config,
                    "training": self.record,
                    "training_provenance": self.provenance,
                },
            ),
            status=OK if loss is not None else self.state,
            text=TextInfo(dataset_title=title, split="validation"),
            result=Result(None if loss is None else self.record.get("best_valid_perplexity")),
        )

    def curve(self, column: str) -> list[tuple[float, float]]:
        """(step, value) of each logged row that has a finite value there."""
        rows = [(row["step"], row.get(column)) for row in self.metrics]
        return [(step, v) for step, v in rows if v is not None and math.isfinite(v)]


@dataclass(frozen=True)
class Sources:
    """All runs and records of a report, in the order in which they were given."""

    runs: Sequence[Trained]
    records: Sequence[Record]

    @property
    def labels(self) -> Labels:
        """How everything here is called; a run that was refused has no say in it."""
        evaluated = [{"transform": r.model.transform} for r in self.records if of_run(r)]
        begun = [run.identity for run in self.runs if run.state != "refused"]
        return Labels([*(begun or [run.identity for run in self.runs]), *evaluated])


def read(directories: Sequence[Path]) -> Sources:
    """What lies in directories: each is a run, an evaluation, or holds such directories.

    Raises:
        FileNotFoundError: no such directory, or nothing in it.
        ValueError: a file in it that can't be read, by its name, and a record by its line.
    """
    found: dict[Path, None] = {}
    for directory in directories:
        found |= dict.fromkeys(path.resolve() for path in _inside(directory))
    records = [r for path in found for r in RecordFile(path / RECORDS).read()]
    # Of two records of one thing the later one counts, of a model what was evaluated last.
    last = {r.key: r for r in latest(records)}
    runs = _apart([Trained.read(path) for path in found if is_run(path)])
    if not runs and not last:
        raise FileNotFoundError(f"{', '.join(map(str, directories))}: {RECORDS} is empty")
    known = {run.name: run for run in runs}
    for r in last.values():
        if of_run(r) and r.model.transform == "none":
            known.setdefault(r.model.name, Trained.of_record(r))
    return Sources(list(known.values()), list(last.values()))


def _inside(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory")
    inside = [directory, *sorted(path for path in directory.iterdir() if path.is_dir())]
    found = [path for path in inside if is_run(path) or (path / RECORDS).exists()]
    if not found:
        raise FileNotFoundError(
            f"{directory} holds neither runs (`python -m train` writes their config.yaml) nor "
            f"{RECORDS} (`python -m evaluate out=DIR` writes it)"
        )
    return found


def _apart(runs: Sequence[Trained]) -> list[Trained]:
    """The runs, those of one name in two directories told apart by a number."""
    seen: dict[str, int] = {}
    made = []
    for run in runs:
        seen[run.name] = n = seen.get(run.name, 0) + 1
        made.append(run if n == 1 else dataclasses.replace(run, name=f"{run.name} ({n})"))
    return made
