"""What records say of scores, on arrays by hand."""

import dataclasses
import math

import numpy as np

from normlab.evaluation.comparison import comparison, token_measures
from normlab.evaluation.measures import ranges, result
from normlab.evaluation.perplexity import Scores, TokenComparison
from normlab.evaluation.protocols.windows import Windows
from normlab.evaluation.range_stats import RangeStats
from normlab.results.fields import Ranges, Result

SCORED = np.array([[False, True, True], [True, True, False]])


def measured(delta, kl=((0, 1, 2), (3, 4, 0)), agrees=((0, 1, 0), (1, 1, 0))):
    tokens = np.zeros((2, 3), np.int32)
    windows = Windows(tokens, tokens, SCORED, *(np.array([3, 2]) for _ in range(3)))
    beside = TokenComparison(np.float32(delta), np.float32(kl), np.array(agrees, bool))
    scores = Scores(np.zeros(2), np.float32(tokens), windows.counts, {}, beside)
    return token_measures(scores, windows)


def test_tokens_that_are_scored_are_averaged():
    assert measured([[0, -1, 2], [0.5, -4.5, 0]]) == {
        "token_delta_mean": 2.0,
        "token_delta_max": 4.5,
        "token_delta_max_at": [1, 1],
        "top1_agreement": 0.75,
        "kl_mean": 2.5,
        "kl_max": 4.0,
    }


def test_a_difference_that_is_no_number_is_the_largest():
    found = measured([[0, -1, math.nan], [0, 9, 0]])
    assert math.isnan(found["token_delta_max"])
    assert found["token_delta_max_at"] == [0, 2]
    assert math.isnan(found["token_delta_mean"])


def test_nothing_is_said_where_nothing_was_compared():
    scores = Scores(np.zeros(2), np.zeros((2, 3), np.float32), np.array([2, 2]), {})
    assert token_measures(scores, None) == {}


def test_where_no_word_begins_in_what_is_scored_words_differ_by_nothing_known():
    """As in two short windows of one very long word."""
    same = Result(window_nll=[2.0, 3.0], window_tokens=[1, 2], window_words=[0, 0])
    found = comparison(same, same, {})
    assert (found.delta, found.delta_stderr) == (0.0, 0.0)
    assert (found.word_delta, found.word_delta_stderr) == (None, None)


def site(**counts):
    names = ["rows", "overflowed", "subnormal", "zero", "above", "below_normal", "below_subnormal"]
    given = (
        dict.fromkeys([*names, "precision_loss", "underflow_errors", "outside"], 0)
        | {"rows": 10}
        | counts
    )
    return RangeStats(**given, sum_error=0.0, max_abs=1.0, max_norm=2.0, median_norm=None,
                    squares={}, sums={})  # fmt: skip


def test_sums_of_windows_and_sites():
    tokens = np.zeros((2, 3), np.int32)
    windows = Windows(tokens, tokens, SCORED, *(np.array(n) for n in ([3, 2], [1, 2], [6, 4])))
    seen = {
        "a": site(subnormal=1, zero=2, underflow_errors=4),
        "b": site(overflowed=5, zero=1, precision_loss=6, outside=7),
    }
    scores = Scores(np.array([3.0, 1.0]), np.float32(tokens), windows.counts, seen)
    found = result(scores, windows)
    assert (found.sum_nll, found.perplexity) == (4.0, math.exp(4 / 4))
    assert found.word_perplexity == math.exp(4 / 3)
    assert found.byte_perplexity == math.exp(4 / 10)
    assert found.bits_per_byte == 0.4 / math.log(2)
    wordless = dataclasses.replace(windows, words=0 * windows.words, bytes=0 * windows.bytes)
    found = result(scores, wordless)
    assert found.word_perplexity is found.bits_per_byte is found.byte_perplexity is None
    held = ranges(scores, {"b": np.float32(2), "c": np.float32(3), "a": lambda x: x})
    assert held == Ranges(20, 5, 4, 3, 6, 4, 7, held.sites)
    assert [held.sites[name].get("scale") for name in "ab"] == [None, 2.0]
