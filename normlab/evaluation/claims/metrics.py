"""What a claim compares: few numbers, each from what a run or an evaluation has recorded."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from normlab.config import require
from normlab.registry import Registry
from normlab.results import Record

if TYPE_CHECKING:
    from normlab.runs.run import Run

LEARNED = 0.5
"""Nats below the loss of the text's token frequencies at which a model counts as having learned."""

metrics: Registry[type["Metric"]] = Registry("metric")
"""Every metric by name."""


class Metric:
    """A number of each run; of several learning rates that of the arm's best one counts."""

    app: ClassVar[str] = "train"
    """The command whose overrides a claim with this metric has."""
    unit: ClassVar[str]
    """Of the number, and of the margin."""
    over_rates: ClassVar[bool] = False
    """Whether all rates of an arm make one number."""
    needs: ClassVar[str | None] = None
    """A field of the runs' config that mustn't be null."""

    @staticmethod
    def of(run: "Run") -> float:
        """The number of a run that has ended well."""
        raise NotImplementedError

    @staticmethod
    def windows(record: Record) -> list[float]:
        """Where `app` is evaluate, the number of each window of an evaluation."""
        raise NotImplementedError

    @staticmethod
    def score(rate: float, losses: Sequence[float], values: Sequence[float | None]) -> float:
        """What the search for a rate minimizes.

        Args:
            rate: one of the grid.
            losses: [seeds], best validation losses at that rate; inf of a run that ended badly.
            values: [seeds], the runs' numbers; None of such a run.
        """
        return sum(losses) / len(losses)

    @staticmethod
    def shown(value: float) -> str:
        """An arm's mean, for a page."""
        return f"{value:.4g}"


@metrics.register("valid_loss")
class ValidLoss(Metric):
    """Best validation loss of a run, in nats of a token."""

    unit = "nats"

    @staticmethod
    def of(run: "Run") -> float:
        """As its record has it."""
        return float(run.record["best_valid_loss"])


@metrics.register("stream_growth")
class StreamGrowth(Metric):
    """Growth of the residual stream's mean square from the first block's end to the last's.

    In doublings, at the last look of the run (`diagnostics_every`). The embedding, whose size is a
    matter of initial values, is left out.
    """

    unit = "doublings"
    needs = "diagnostics_every"

    @staticmethod
    def of(run: "Run") -> float:
        """log₂ of the ratio."""
        require(
            bool(run.diagnostics),
            f"{run.directory} was trained without diagnostics_every: expected one, in another "
            "folder (runs=DIR)",
        )
        squares = [seen["mean_square"] for seen in run.diagnostics[-1]["stream"]]
        return math.log2(squares[-1] / squares[1])


@metrics.register("largest_stable_rate")
class LargestStableRate(Metric):
    """The largest learning rate at which a model still learns, in doublings.

    It learns that ends with a validation loss half a nat below that of the text's token
    frequencies. The grid grows while its largest stable rate is at its edge.
    """

    unit = "doublings"
    over_rates = True

    @staticmethod
    def of(run: "Run") -> float:
        """1 where the model has learned, else 0."""
        ends = [row["valid_loss"] for row in run.metrics if "valid_loss" in row]
        return float(ends[-1] < run.record["unigram_valid_loss"] - LEARNED)

    @staticmethod
    def score(rate: float, losses: Sequence[float], values: Sequence[float | None]) -> float:
        """The largest rate at which any seed learns is the best one."""
        return -rate if any(values) else math.inf

    @staticmethod
    def shown(value: float) -> str:
        """As a rate."""
        return f"{2**value:.3g}"


def largest(by_rate: Mapping[float, float | None]) -> float:
    """log₂ of the largest rate that is stable; NaN where none is."""
    stable = [rate for rate, value in by_rate.items() if value]
    return math.log2(max(stable)) if stable else math.nan


@metrics.register("window_nll")
class WindowNLL(Metric):
    """Mean NLL of a token in each window of an evaluation, in nats."""

    app = "evaluate"
    unit = "nats"

    @staticmethod
    def windows(record: Record) -> list[float]:
        """[windows], of one model in one precision."""
        counts = zip(record.result.window_nll, record.result.window_tokens, strict=True)
        return [nll / tokens for nll, tokens in counts]
