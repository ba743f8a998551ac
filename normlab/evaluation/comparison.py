"""A record's differences to fp32: over windows, and token by token."""

import dataclasses
from typing import Any

import numpy as np

from normlab.evaluation.perplexity import Scores
from normlab.evaluation.protocols import Windows
from normlab.results import Record, paired_difference


def compared(record: Record, reference: Record) -> Record:
    """The record with its differences to `reference`, which read the same windows."""
    nll = np.array(record.window_nll), np.array(reference.window_nll)
    token = paired_difference(*nll, np.array(record.window_tokens))
    record = dataclasses.replace(record, delta=token.delta, delta_stderr=token.stderr)
    if not sum(record.window_words):  # no word begins in what was scored
        return record
    word = paired_difference(*nll, np.array(record.window_words))
    return dataclasses.replace(record, word_delta=word.delta, word_delta_stderr=word.stderr)


def token_measures(scores: Scores, windows: Windows) -> dict[str, Any]:
    """The fields that compare scored tokens with fp32; none where that was not asked for."""
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
