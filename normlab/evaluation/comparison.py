"""A record's differences to fp32: over windows, and token by token."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.evaluation.perplexity import Scores
from normlab.evaluation.protocols import Windows
from normlab.results import paired_difference
from normlab.results.fields import Comparison, Result


def comparison(result: Result, reference: Result, tokens: Mapping[str, Any]) -> Comparison:
    """The differences of `result` to `reference`, which read the same windows.

    Args:
        result: of any column.
        reference: of fp32.
        tokens: what `token_measures` gives.
    """
    nll = np.array(result.window_nll), np.array(reference.window_nll)
    token = paired_difference(*nll, np.array(result.window_tokens))
    if not sum(result.window_words):  # no word begins in what was scored
        return Comparison(token.delta, token.stderr, **tokens)
    word = paired_difference(*nll, np.array(result.window_words))
    return Comparison(*token, *word, **tokens)


def token_measures(scores: Scores, windows: Windows) -> dict[str, Any]:
    """Those fields of `Comparison` that are of tokens; none where that was not asked for."""
    if scores.beside is None:
        return {}
    scored = windows.scored
    size = np.where(scored, np.abs(scores.beside.delta_nll), -1.0)  # NaN is the largest
    at = np.unravel_index(np.argmax(size), size.shape)
    kl = scores.beside.kl[scored]
    return {
        "token_delta_mean": float(size[scored].mean(dtype=np.float64)),
        "token_delta_max": float(size[at]),
        "token_delta_max_at": [int(i) for i in at],
        "top1_agreement": float(scores.beside.agrees[scored].mean()),
        "kl_mean": float(kl.mean(dtype=np.float64)),
        "kl_max": float(kl.max()),
    }
