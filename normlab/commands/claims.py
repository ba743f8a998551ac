"""`python -m evaluate claims [CLAIM …]`: claims of papers, run or read, with their verdicts."""

import argparse
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import jax
from omegaconf import OmegaConf

from normlab.commands import compile_cache
from normlab.commands.errors import explained
from normlab.commands.groups import CONFIGS
from normlab.commands.launch import composed, imports
from normlab.config import build, require
from normlab.evaluation import evaluate
from normlab.evaluation.claims import Claim, Outcome, Trial, metrics, verdict
from normlab.evaluation.claims.outcome import read
from normlab.evaluation.claims.page import page
from normlab.evaluation.claims.verdict import numbers
from normlab.evaluation.config import EvaluateConfig
from normlab.progress import sweep
from normlab.registry import choice
from normlab.results.record import GOOD, OK
from normlab.runs import user_files
from normlab.runs.provenance import provenance
from normlab.runs.run import Run
from normlab.training.config import TrainConfig
from normlab.training.start import resolved
from normlab.training.trainer import train
from normlab.training.tuning import grown

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
        found = {file: load(file) for file in files}
        for claim in found.values():
            check(claim)
        for claim in found.values() if asked.run else ():
            compile_cache.use()
            print(f"written to {run(claim, asked.out).write(asked.out)}")
        outcomes = [read(claim, [asked.out, file.parent]) for file, claim in found.items()]
        told = [(c, o, verdict(c, o)) for c, o in zip(found.values(), outcomes, strict=True)]
        text = page(told)
        if asked.page is not None:
            asked.page.write_text(text, encoding="utf-8")
        print(text if asked.page is None else f"written to {asked.page}")


def names() -> list[str]:
    """Those of the claims that normlab brings."""
    return sorted(file.stem for file in CLAIMS.glob("*.yaml"))


def _file(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
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
        score = partial(_score, claim, arm, done)
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
        _made(sum(record["seconds"] for record in records)),
    )


def _score(claim: Claim, arm: str, done: list[tuple[Trial, Run]], rate: float) -> float:
    made = [_trial(claim, arm, rate, seed) for seed in claim.seeds]
    done += made
    return metrics[claim.metric].score(rate, *numbers([trial for trial, _ in made]))


def _trial(claim: Claim, arm: str, rate: float, seed: int) -> tuple[Trial, Run]:
    sweep.begin(1, 1, f"{claim.name}: {arm} lr={rate:g} seed={seed}")
    made = train(_train_config(claim, arm, rate, seed), claim.overrides(arm))
    record, good = made.record, made.record["state"] in GOOD
    value = metrics[claim.metric].of(made) if good else None
    loss = record["best_valid_loss"] if good else None
    return Trial(arm, rate, seed, record["state"], loss, value), made


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
