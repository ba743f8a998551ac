"""`python -m evaluate claims [CLAIM …]`: claims of papers, run or read, with their verdicts."""

import argparse
import math
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import jax
from omegaconf import OmegaConf
from rich.text import Text

from normlab.commands import compile_cache
from normlab.commands.errors import explained
from normlab.commands.groups import CONFIGS
from normlab.commands.launch import composed, imports
from normlab.config import build, require
from normlab.evaluation import evaluate
from normlab.evaluation.claims import Claim, Outcome, Trial, metrics, verdict
from normlab.evaluation.claims.outcome import read
from normlab.evaluation.claims.page import LEGEND, Told, answer, lines, measured, page
from normlab.evaluation.claims.verdict import numbers
from normlab.evaluation.config import EvaluateConfig
from normlab.progress import console, sweep
from normlab.registry import choice
from normlab.results.formats import ruled
from normlab.results.record import OK
from normlab.runs import user_files
from normlab.runs.provenance import provenance
from normlab.runs.run import Run
from normlab.training.config import TrainConfig
from normlab.training.start import resolved
from normlab.training.trainer import train
from normlab.training.tuning import final_loss, grown

CLAIMS = CONFIGS / "claims"
EXAMPLES = """examples:
  python -m evaluate claims                           verdicts of all claims that were run
  python -m evaluate claims qk-norm-rate --run        run one again; interrupted, it goes on
  python -m evaluate claims my_claim.yaml --run       one of your own: docs/howto/claims.md
"""


def main(arguments: Sequence[str]) -> None:
    """Run what is asked for, then print the page of verdicts."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate claims",
        description="What papers say, as experiments: which hold here, which fail, which can't be "
        "told, each with its figures, its regime and its limits.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help="a name or FILE.yaml; none: all")
    parser.add_argument("--run", action="store_true", help="train or evaluate what is missing")
    parser.add_argument(
        "--out", type=Path, default=Path("results/claims"), metavar="DIR",
        help="where NAME.json goes, and is looked for before the one beside the claim's file",
    )  # fmt: skip
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the verdicts there")
    asked = parser.parse_args(arguments)
    with explained():
        files = [_file(name) for name in asked.claims or names()]
        found = [load(file) for file in files]
        require(bool(asked.claims) or not asked.run, "--run: expected the names of claims to run")
        for claim in found if asked.run else ():
            check(claim)
        for claim in found if asked.run else ():
            compile_cache.use()
            print(f"written to {run(claim, asked.out).write(asked.out)}")
        _tell(verdicts(files, asked.out), commands(asked.claims, asked.out, asked.page), asked.page)


def verdicts(files: Sequence[Path], *folders: Path) -> list[Told]:
    """What there is to say of some claims, from records in these folders, or beside each file."""
    told = []
    for file in files:
        claim = load(file)
        outcome = read(claim, [*folders, file.parent])
        told.append((claim, outcome, verdict(claim, outcome)))
    return told


def commands(claims: Sequence[str], out: Path, to: Path | None = None) -> list[str]:
    """What makes the page of some claims, and their records."""
    where, page = f"--out {out}", [] if to is None else [f"--page {to}"]
    claims = [quote(claim) for claim in claims]
    return [
        " ".join(["python -m evaluate claims", *claims, where, *page]),
        " ".join(["python -m evaluate claims", *(claims or ["NAME"]), where, "--run"]),
    ]


def _tell(told: Sequence[Told], made_by: Sequence[str], to: Path | None) -> None:
    """Write the page; or print it, on a terminal its table and what was measured."""
    if to is not None:
        to.write_text(page(told, made_by), encoding="utf-8")
        print(f"written to {to}")
    elif console.is_terminal:
        console.print(ruled(answer(told), lines(told), 2), soft_wrap=False)
        console.print(f"{measured(told)}\n", Text(LEGEND, "dim"))
    else:
        print(page(told, made_by))


def names() -> list[str]:
    """Those of the claims that normlab brings."""
    return sorted(file.stem for file in CLAIMS.glob("*.yaml"))


def _file(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        require(Path(name).is_file(), f"{name}: no such file; expected a claim's name or FILE.yaml")
        return Path(name)
    return CLAIMS / f"{choice('claim', name, names())}.yaml"


def load(file: Path) -> Claim:
    """The claim in a file, which OmegaConf reads: to it 1e-3 is a number."""
    values: Any = OmegaConf.to_container(OmegaConf.load(file))
    require(isinstance(values, dict), f"{file}: expected fields of a claim, such as metric: …")
    user_files.load(imports(str(values.get("common", "")).split()))
    try:
        return build(Claim, {"name": file.stem} | values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error


def check(claim: Claim) -> None:
    """Raise what any run of a claim would raise about its config, before the first."""
    for arm in claim.arms:
        try:
            config = _train_config(claim, arm) if claim.trains else _evaluate_config(claim, arm)
        except (ValueError, TypeError) as error:
            raise ValueError(f"claim {claim.name}, arm {arm}: {error}") from error
        needs = metrics[claim.metric].needs
        require(
            needs is None or getattr(config, needs) is not None,
            f"claim {claim.name}: metric {claim.metric} needs {needs}=N among its overrides",
        )


def run(claim: Claim, out: Path) -> Outcome:
    """All trials of a claim, those that are there as they are."""
    return _trained(claim) if claim.trains else _evaluated(claim, out)


def _trained(claim: Claim) -> Outcome:
    """A run for each arm, rate and seed; the grid of rates grows while the best is at its edge."""
    done: list[tuple[Trial, Run]] = []
    for arm in claim.arms:
        score = partial(_score, claim, done, arm)
        if len(claim.rates) > 1:
            grown(score, claim.rates)
        else:
            score(claim.rates[0])
    records = [one.record for _, one in done]
    return Outcome(
        claim,
        tuple(trial for trial, _ in done),
        tuple(sorted({record["parameters"] for record in records})),
        max(record["tokens_seen"] for record in records),
        done[0][1].read("provenance.json")["corpus"]["title"],
        _made(sum({one.directory: one.record["seconds"] for _, one in done}.values())),
    )


def _score(claim: Claim, done: list[tuple[Trial, Run]], arm: str, rate: float) -> float:
    """Train all seeds at one rate; what the search for the best rate minimizes."""
    least = len(claim.arms) * len(claim.rates) * len(claim.seeds)
    for seed in claim.seeds:
        number = len(done) + 1
        sweep.begin(number, max(number, least), f"{claim.name}: {arm} lr={rate:g} seed={seed}")
        done.append(_trial(claim, arm, rate, seed))
    trials = [trial for trial, _ in done[-len(claim.seeds) :]]
    return metrics[claim.metric].score(rate, *numbers(trials))


def _trial(claim: Claim, arm: str, rate: float, seed: int) -> tuple[Trial, Run]:
    made = train(_train_config(claim, arm, rate, seed), claim.overrides(arm))
    loss, state = final_loss(made.record), made.record["state"]
    if not math.isfinite(loss):
        return Trial(arm, rate, seed, state), made
    return Trial(arm, rate, seed, state, loss, metrics[claim.metric].of(made)), made


def _train_config(
    claim: Claim, arm: str, rate: float | None = None, seed: int | None = None
) -> TrainConfig:
    """The config of one run; the first where no rate and no seed is given."""
    rate = claim.rates[0] if rate is None else rate
    seed = claim.seeds[0] if seed is None else seed
    own = [f"optimizer.lr={rate!r}", f"seed={seed}"]
    overrides = ["runs=runs/claims", *claim.overrides(arm), *own]
    named = [override.partition("=")[0] for override in overrides]
    return resolved(composed("train", TrainConfig, overrides), named)


def _evaluated(claim: Claim, out: Path) -> Outcome:
    """An evaluation for each arm, of one model in one precision; its windows are the trials."""
    trials, records = list[Trial](), []
    for arm in claim.arms:
        found = evaluate(_evaluate_config(claim, arm, out))
        require(
            len(found) == 1 and found[0].status == OK,
            f"claim {claim.name}, arm {arm}: {len(found)} columns, {found[0].status}: expected one "
            "model in one precision that applies to it, such as precision=[fp32]",
        )
        records += found
        values = metrics[claim.metric].windows(found[0])
        trials += [Trial(arm, pair=i, state=OK, value=value) for i, value in enumerate(values)]
    return Outcome(
        claim,
        tuple(trials),
        tuple(sorted({record.model.parameters or 0 for record in records})),
        max(record.text.tokens_scored or 0 for record in records),
        f"{records[0].text.dataset_title}, {records[0].model.name}",
        _made(sum(record.result.seconds or 0.0 for record in records)),
    )


def _evaluate_config(claim: Claim, arm: str, out: Path = Path()) -> EvaluateConfig:
    return composed("evaluate", EvaluateConfig, [f"out={out / claim.name}", *claim.overrides(arm)])


def _made(seconds: float) -> dict[str, Any]:
    """When, and with what; `seconds` of all trials together."""
    told = provenance()
    return {
        "date": date.today().isoformat(),
        "normlab": told["normlab"],
        "code": told["code"],
        "python": told["python"],
        "jax": jax.__version__,
        "device": told["device"],
        "seconds": round(seconds),
    }
