"""Cutting windows: what is scored, with how much context, what is padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from normlab.evaluation.protocols.windows import (
    Span,
    Stream,
    assemble,
    disjoint,
    overlapping,
    rolling,
)

TOKENS, LENGTH = st.integers(0, 200), st.integers(2, 40)


def stream(n):
    return Stream(np.arange(n, dtype=np.int32) + 5, np.arange(n) * 2, np.arange(n) * 3)


def scored(spans):
    return [k for s in spans for k in range(s.scored, s.end)]


@given(TOKENS, LENGTH)
def test_disjoint_windows_with_bos_score_every_token_once(n, length):
    spans = list(disjoint(n, length, 1))
    assert scored(spans) == list(range(n))
    assert all(s.end - s.start + 1 <= length for s in spans)
    assert all(s.end - s.start + 1 == length for s in spans[:-1])


@given(TOKENS, LENGTH)
def test_disjoint_windows_without_bos_score_all_but_their_first(n, length):
    assert scored(disjoint(n, length, None)) == [k for k in range(n) if k % length]


@given(TOKENS, LENGTH)
def test_overlapping_windows_score_all_but_the_first_token_with_half_a_window_before(n, length):
    spans = list(overlapping(n, length))
    assert scored(spans) == list(range(1, n))
    for s in spans:
        assert s.end - s.start <= length
        assert s.start == 0 or s.scored - s.start >= length - length // 2


@given(TOKENS, LENGTH)
def test_rolling_windows_score_all_but_the_first_token_in_windows_of_full_length(n, length):
    spans = list(rolling(n, length))
    assert scored(spans) == list(range(1, n))
    assert all(s.end - s.start - 1 == length for s in spans if n > length)


def test_rolling_windows_are_those_of_the_harness():
    """The example in its documentation: prefix, tokens 0 … 8, three inputs, one of context."""
    prefix_and_tokens = ["P", *range(9)]
    spans = [(prefix_and_tokens[s.start : s.end], s.end - s.scored) for s in rolling(10, 4)]
    assert spans == [(["P", 0, 1, 2, 3], 4), ([3, 4, 5, 6, 7], 4), ([4, 5, 6, 7, 8], 1)]


@given(st.integers(2, 60), LENGTH, st.sampled_from([None, 3]))
def test_assembled_windows_ask_for_the_token_after_each_input(n, length, bos):
    spans = list(disjoint(n, length, bos))
    windows = assemble(stream(n), spans, length - 1)
    for row, span in enumerate(spans):
        tokens = ([] if bos is None else [bos]) + [k + 5 for k in range(span.start, span.end)]
        real = windows.lengths[row]
        assert windows.inputs[row, :real].tolist() == tokens[:-1]
        assert windows.targets[row, :real].tolist() == tokens[1:]
        assert not windows.scored[row, real:].any()
        asked = windows.targets[row, windows.scored[row]]
        assert asked.tolist() == [k + 5 for k in range(span.scored, span.end)]
        assert windows.counts[row] == span.end - span.scored
        assert windows.words[row] == sum(2 * k for k in range(span.scored, span.end))
        assert windows.bytes[row] == sum(3 * k for k in range(span.scored, span.end))


def test_bos_of_a_stream_stands_for_no_text():
    behind = stream(3).after(9)
    assert behind.ids.tolist() == [9, 5, 6, 7]
    assert behind.words.tolist() == [0, 0, 2, 4]
    assert stream(3).after(None).ids.tolist() == [5, 6, 7]


def test_slices_and_joins():
    windows = assemble(stream(10), [Span(0, 4, 1), Span(4, 8, 5), Span(8, 10, 9)], 3)
    again = type(windows).join([windows[:1], windows[1:]])
    assert len(windows[:2]) == 2
    assert again.targets.tolist() == windows.targets.tolist()
    assert again.counts.tolist() == [3, 3, 1]
