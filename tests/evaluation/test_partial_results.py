"""An evaluation that is cut off goes on where it was, to the same numbers."""

import jax
import numpy as np
import pytest

from normlab import unfinished as module
from normlab.perplexity import Column, score_columns
from normlab.unfinished import Unfinished
from tests.evaluation.test_perplexity import build, parse, windows

COLUMNS = [Column(parse("fp32")), Column(parse("fp16")), Column(parse("fp8_e4m3"))]


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Every batch is written."""
    monkeypatch.setattr(module, "EVERY", 0.0)


class CutOff(Exception):
    pass


def cut_at(last):
    def on_batch(done):
        if done >= last:
            raise CutOff

    return on_batch


def cut_off(directory, at):
    with pytest.raises(CutOff):
        score_columns(
            build(), windows(), COLUMNS, batch=1, on_batch=cut_at(at),
            unfinished=Unfinished(directory),
        )  # fmt: skip


def gone_on(directory):
    """The windows done after each batch, and the scores."""
    told = []
    scores = score_columns(
        build(), windows(), COLUMNS, batch=1, on_batch=told.append,
        unfinished=Unfinished(directory),
    )  # fmt: skip
    return told, scores


def same(ours, others):
    ours, others = jax.tree.leaves(vars(ours)), jax.tree.leaves(vars(others))
    return all(np.array_equal(a, b) for a, b in zip(ours, others, strict=True))


@pytest.fixture(scope="module")
def alone():
    return score_columns(build(), windows(), COLUMNS, batch=1)


def test_it_goes_on_to_equal_scores(tmp_path, alone):
    cut_off(tmp_path, 3)
    told, scores = gone_on(tmp_path)
    assert told[0] == 3  # of two windows the results were written
    assert [same(a, b) for a, b in zip(scores, alone, strict=True)] == [True] * 3


def test_cut_off_twice(tmp_path, alone):
    cut_off(tmp_path, 3)
    cut_off(tmp_path, 5)
    told, scores = gone_on(tmp_path)
    assert told[0] == 5
    assert all(same(a, b) for a, b in zip(scores, alone, strict=True))


def test_the_last_batch_is_always_read(tmp_path, alone):
    gone_on(tmp_path)
    told, scores = gone_on(tmp_path)
    assert told == [len(windows())]
    assert all(same(a, b) for a, b in zip(scores, alone, strict=True))


@pytest.mark.parametrize("left", [b"", b"PK\x03\x04 half a file", b"no zip"])
def test_a_damaged_file_ends_what_is_taken_and_is_replaced(tmp_path, alone, left):
    cut_off(tmp_path, 5)
    (tmp_path / "00000002.npz").write_bytes(left)
    told, scores = gone_on(tmp_path)
    assert told[0] == 3
    assert all(same(a, b) for a, b in zip(scores, alone, strict=True))
    assert len(Unfinished(tmp_path).done) == len(windows()) - 1


def test_what_is_quickly_done_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 60.0)
    gone_on(tmp_path / "here")
    assert not (tmp_path / "here").exists()
