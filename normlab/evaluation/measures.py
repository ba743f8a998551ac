"""What a record says once the scores are there."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.evaluation.perplexity import Scores, exp
from normlab.evaluation.protocols import Windows
from normlab.results import Record, paired_difference


def measures(scores: Scores, windows: Windows, scales: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that follow from sums and counts."""
    total, seen = scores.sum_nll, scores.sites.values()
    words, size = int(windows.words.sum()), int(windows.bytes.sum())
    return {
        "perplexity": scores.perplexity,
        "sum_nll": total,
        "word_perplexity": exp(total / words) if words else None,
        "byte_perplexity": exp(total / size) if size else None,
        "bits_per_byte": total / size / math.log(2.0) if size else None,
        "nonfinite_windows": scores.nonfinite_windows,
        "rows": sum(s.rows for s in seen),
        "overflowed_rows": sum(s.overflowed for s in seen),
        "underflowed_rows": sum(s.subnormal + s.zero for s in seen),
        "zero_rows": sum(s.zero for s in seen),
        "precision_loss_rows": sum(s.precision_loss for s in seen),
        "underflow_error_rows": sum(s.underflow_errors for s in seen),
        "sites": _sites(scores, scales),
        "window_nll": scores.window_nll.tolist(),
        "window_tokens": windows.counts.tolist(),
        "window_words": windows.words.tolist(),
    }


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


def _sites(scores: Scores, scales: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By site what its norm saw, and its scale where that is a number."""
    sites = {site: dataclasses.asdict(rows) for site, rows in scores.sites.items()}
    for site in sites.keys() & scales.keys():
        if not callable(scales[site]):
            sites[site]["scale"] = np.asarray(scales[site], np.float64).tolist()
    return sites


def compared(record: Record, reference: Record) -> Record:
    """The record with its differences to `reference`, which read the same windows."""
    nll = np.array(record.window_nll), np.array(reference.window_nll)
    token = paired_difference(*nll, np.array(record.window_tokens))
    record = dataclasses.replace(record, delta=token.delta, delta_stderr=token.stderr)
    if not sum(record.window_words):  # no word begins in what was scored
        return record
    word = paired_difference(*nll, np.array(record.window_words))
    return dataclasses.replace(record, word_delta=word.delta, word_delta_stderr=word.stderr)
