"""The page of verdicts: a table, what was measured of each claim, what it can't say."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence

from normlab.evaluation.claims.claim import Claim
from normlab.evaluation.claims.metrics import metrics
from normlab.evaluation.claims.outcome import Outcome
from normlab.evaluation.claims.verdict import FAILS, HOLDS, NOT_RUN, UNCLEAR, Verdict
from normlab.results.formats import grid
from normlab.training.tuning import Tuned

Told = tuple[Claim, Outcome | None, Verdict]

HEAD = ("claim", "verdict", "difference", "counts from", "regime")
LEGEND = (
    "Difference: of the arms as the claim expects them (`a > b`: a less b), its mean and 95 % "
    "interval by Student's t over paired seeds, or windows. A claim holds where the whole interval "
    "counts, fails where none of it does; else the runs are too few or too small to tell. Each arm "
    "is at its best learning rate by mean validation loss, on the same seeds, of a grid that grows "
    "while the best is at its edge. A rate of a grid is known to a step of it, by which the "
    "interval is wider. Intervals are not corrected for the number of claims."
)


def page(told: Sequence[Told], commands: Sequence[str]) -> str:
    """In Markdown; the claims that were run first. `commands` made it."""
    defined = [claim for claim, outcome, _ in told if outcome is None]
    parts = ["# Claims, tested in small", answer(told), grid(lines(told)), LEGEND]
    if len(defined) < len(told):
        parts += ["## What was measured, and what it can't say", measured(told)]
    if defined:
        parts += ["## Defined, not run", "\n".join(map(_defined, defined))]
    parts += ["## Commands and provenance", "\n".join(["```", *commands, "```"])]
    if len(defined) < len(told):
        parts += [_made([outcome for _, outcome, _ in told if outcome is not None])]
    return "\n\n".join(_wrapped(part) for part in parts) + "\n"


def answer(told: Sequence[Told]) -> str:
    """How many claims hold, fail, and so on."""
    counts = Counter(verdict.word for _, _, verdict in told)
    said = [f"{word}: {counts[word]}" for word in (HOLDS, FAILS, UNCLEAR, NOT_RUN) if counts[word]]
    return (
        f"Claims: {len(told)} ({'; '.join(said)}). Every verdict is one of the regime beside it, "
        "and can't say what happens with larger models and more text: a paper's may be thousands "
        "of times as large."
    )


def lines(told: Sequence[Told]) -> list[list[str]]:
    """A head, and a line for each claim."""
    return [list(HEAD), *map(_line, sorted(told, key=lambda one: one[2].word == NOT_RUN))]


def measured(told: Sequence[Told]) -> str:
    """Of each claim that was run the arms' means and rates, the source, the limits."""
    return "\n".join(_measured(c, o, v) for c, o, v in told if o is not None)


def _line(one: Told) -> list[str]:
    claim, outcome, found = one
    counts = f"{claim.margin:g} {metrics[claim.metric].unit}"
    counts = f"within {counts}" if claim.relation == "=" else counts
    word = found.word if found.word == NOT_RUN else f"**{found.word}**"
    regime = "" if outcome is None else _regime(claim, outcome)
    return [f"`{claim.name}`: {claim.says}", word, _difference(found), counts, regime]


def _difference(found: Verdict) -> str:
    if not math.isfinite(found.low):
        return found.why
    return f"{found.mean:+.2g} ({found.low:+.2g} to {found.high:+.2g})"


def _regime(claim: Claim, outcome: Outcome) -> str:
    """Parameters, tokens, pairs."""
    sizes = dict.fromkeys(short(outcome.parameters[i]) for i in (0, -1))
    trials = {trial.pair for trial in outcome.trials}
    pairs = f"{len(trials)} {'seeds' if claim.trains else 'windows'}"
    return f"{' to '.join(sizes)} parameters, {short(outcome.tokens)} tokens, {pairs}"


def short(number: int) -> str:
    """135M, 0.42M, 61k."""
    if number >= 1e5:
        return f"{number / 1e6:.3g}M" if number >= 1e6 else f"{number / 1e6:.2g}M"
    return f"{number / 1e3:.2g}k"


def _measured(claim: Claim, outcome: Outcome, found: Verdict) -> str:
    arms = ", ".join(f"{arm} {_arm(claim, arm, found)}" for arm in claim.arms)
    many = f"{len(outcome.trials)} runs on " if claim.trains else ""
    return _item(
        f"`{claim.name}` ({claim.source}), {claim.metric}, `{claim.expects}`: {arms}. {many}"
        f"{outcome.text}. {claim.limits}"
    )


def _arm(claim: Claim, arm: str, found: Verdict) -> str:
    value = (found.arms or {}).get(arm, math.nan)
    said = metrics[claim.metric].shown(value) if math.isfinite(value) else "no number"
    tried = (found.tuned or {}).get(arm)
    return said if tried is None else f"{said} ({_rate(tried)})"


def _rate(tried: Tuned) -> str:
    """The best rate and what it was chosen from: "4e-3 of 3", "8e-3 of 7, the highest"."""
    if tried.best is None:
        return f"no rate of {len(tried.losses)}"
    order = sorted(tried.losses)
    edge = {order[0]: ", the lowest", order[-1]: ", the highest"}.get(tried.best, "")
    return f"lr {tried.best:g} of {len(order)}" + (edge if len(order) > 1 else "")


def _defined(claim: Claim) -> str:
    return _item(f"`{claim.name}` ({claim.source}): `{claim.expects}` in {claim.metric}.")


def _made(outcomes: Sequence[Outcome]) -> str:
    """Dates and versions."""
    told = {k: sorted({str(o.made[k]) for o in outcomes}) for k in ("date", "jax", "device")}
    return (
        f"{', '.join(told['date'])}, jax {', '.join(told['jax'])}, {', '.join(told['device'])}. "
        "The records are `NAME.json`, a line a run; this page is made from them. Claims with a "
        "common baseline share its runs."
    )


def _item(text: str) -> str:
    return textwrap.fill(f"- {text}", 118, subsequent_indent="  ", break_on_hyphens=False)


def _wrapped(part: str) -> str:
    """Prose in lines; what has lines already as it is."""
    if "\n" in part or part.startswith("#"):
        return part
    return textwrap.fill(part, 118, break_long_words=False, break_on_hyphens=False)
