"""What a record says once the scores are there."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.evaluation.perplexity import Scores, exp
from normlab.evaluation.protocols import Windows
from normlab.results.fields import Ranges, Result


def result(scores: Scores, windows: Windows) -> Result:
    """What follows from sums and counts."""
    total, words, size = scores.sum_nll, int(windows.words.sum()), int(windows.bytes.sum())
    return Result(
        perplexity=scores.perplexity,
        sum_nll=total,
        word_perplexity=exp(total / words) if words else None,
        byte_perplexity=exp(total / size) if size else None,
        bits_per_byte=total / size / math.log(2.0) if size else None,
        nonfinite_windows=scores.nonfinite_windows,
        window_nll=scores.window_nll.tolist(),
        window_tokens=windows.counts.tolist(),
        window_words=windows.words.tolist(),
    )


def ranges(scores: Scores, scales: Mapping[str, Any]) -> Ranges:
    """What all norms saw, and each of them; `scales` by site."""
    seen = scores.sites.values()
    return Ranges(
        rows=sum(s.rows for s in seen),
        overflowed_rows=sum(s.overflowed for s in seen),
        underflowed_rows=sum(s.subnormal + s.zero for s in seen),
        zero_rows=sum(s.zero for s in seen),
        precision_loss_rows=sum(s.precision_loss for s in seen),
        underflow_error_rows=sum(s.underflow_errors for s in seen),
        outside_elements=sum(s.outside for s in seen),
        sites=_sites(scores, scales),
    )


def _sites(scores: Scores, scales: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By site what its norm saw, and its scale where that is a number."""
    sites = {site: dataclasses.asdict(rows) for site, rows in scores.sites.items()}
    for site in sites.keys() & scales.keys():
        if not callable(scales[site]):
            sites[site]["scale"] = np.asarray(scales[site], np.float64).tolist()
    return sites
