"""What a claim's runs have given, small enough to be committed beside it."""

import json
from dataclasses import dataclass
from pathlib import Path

from normlab.config import build, field, to_dict
from normlab.evaluation.claims.claim import Claim


@dataclass(frozen=True)
class Trial:
    """One run, or one window of an evaluation."""

    arm: str = field("", "of the claim")
    rate: float | None = field(None, "peak learning rate; null of a window")
    pair: int = field(0, "what is compared with the same of another arm: a seed, or a window")
    state: str = field("", "how the run ended")
    loss: float | None = field(None, "best validation loss in nats; null where it ended badly")
    value: float | None = field(None, "the metric; null where the run ended badly")


@dataclass(frozen=True)
class Outcome:
    """All trials of a claim, and the regime that they are of."""

    claim: Claim = field(Claim, "as it was when they were made")
    trials: tuple[Trial, ...] = field((), "in the order in which they were made")
    parameters: tuple[int, ...] = field((), "of the arms' models, each number once")
    tokens: int = field(0, "that each run has seen, or that were scored of each arm")
    text: str = field("", "its title")
    made: dict = field(dict, "date, versions, device, seconds")

    def write(self, folder: Path) -> Path:
        """NAME.json, a line a trial."""
        told = to_dict(self)
        trials = ",\n  ".join(json.dumps(trial, ensure_ascii=False) for trial in told.pop("trials"))
        head = json.dumps(told, indent=1, ensure_ascii=False)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.claim.name}.json"
        path.write_text(f'{head[:-2]},\n "trials": [\n  {trials}\n ]\n}}\n', encoding="utf-8")
        return path


def read(claim: Claim, folders: list[Path]) -> Outcome | None:
    """The outcome of a claim in the first folder that has one; of another definition it is none."""
    for path in (folder / f"{claim.name}.json" for folder in folders):
        if path.exists():
            found = build(Outcome, json.loads(path.read_text(encoding="utf-8")))
            if found.claim.decides == claim.decides:
                return found
    return None
