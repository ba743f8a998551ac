"""An evaluation that is cut off goes on where it was, to the same numbers."""

import numpy as np
import pytest

from normlab.evaluation import partial_results as module
from normlab.evaluation.partial_results import PartialResults
from tests.conftest import same_trees, tiny_model
from tests.support.scored_windows import BATCH, SPANS, scored, windows

pytestmark = pytest.mark.system

COLUMNS = ("fp32", "fp16:pairwise", "fp16:sequential")
READ = windows(SPANS * 2)  # six batches


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Every batch is written."""
    monkeypatch.setattr(module, "EVERY", 0.0)


class CutOff(Exception):
    pass


def cut_off(directory, at):
    """What is cut off after batch `at` has left what came before it."""

    def on_batch(done):
        if done >= at * BATCH:
            raise CutOff

    with pytest.raises(CutOff):
        scored(
            tiny_model(), READ, *COLUMNS, on_batch=on_batch, unfinished=PartialResults(directory)
        )


def gone_on(directory):
    """The batches done after the first one that is run, and the scores."""
    told = []
    scores = scored(
        tiny_model(), READ, *COLUMNS, on_batch=told.append, unfinished=PartialResults(directory)
    )
    return told[0] / BATCH, scores


def same(ours, others):
    return same_trees([vars(one) for one in ours], [vars(one) for one in others])


@pytest.fixture(scope="module")
def alone():
    return scored(tiny_model(), READ, *COLUMNS)


def test_it_goes_on_to_equal_scores_even_twice(tmp_path, alone):
    cut_off(tmp_path / "once", 3)
    first, scores = gone_on(tmp_path / "once")
    assert first == 3  # of two batches the results were written
    assert same(scores, alone)
    cut_off(tmp_path / "twice", 3)
    cut_off(tmp_path / "twice", 5)
    first, scores = gone_on(tmp_path / "twice")
    assert first == 5
    assert same(scores, alone)


def test_the_last_batch_is_always_read(tmp_path, alone):
    gone_on(tmp_path)
    first, scores = gone_on(tmp_path)
    assert first == len(READ) / BATCH
    assert same(scores, alone)


@pytest.mark.parametrize("left", [b"", b"PK\x03\x04 half a file", b"no zip", None])
def test_a_damaged_file_ends_what_is_taken_and_is_replaced(tmp_path, left):
    results, path = [(np.arange(3) + i, np.float32(i)) for i in range(4)], tmp_path / "00000002.npz"

    def added(first):
        kept = PartialResults(tmp_path)
        assert len(kept.done) == first
        for result in results[first:]:
            kept.add(result)
        return path.read_bytes()

    whole = added(0)
    path.unlink() if left is None else path.write_bytes(left)
    assert added(2) == whole
    kept = PartialResults(tmp_path)
    assert same_trees(kept.done, results)
    kept.remove()
    assert not tmp_path.exists()


def test_what_is_quickly_done_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 60.0)
    gone_on(tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_two_of_one_evaluation_do_not_disturb_each_other(tmp_path, monkeypatch):
    """One is done, and takes the directory away, while the other writes; other processes write."""
    first, second = PartialResults(tmp_path / "a"), PartialResults(tmp_path / "a")
    save = np.savez

    def saved(file, *stacks):
        save(file, *stacks)
        first.remove()

    monkeypatch.setattr(np, "savez", saved)
    second.add(np.zeros(3))
    monkeypatch.setattr(np, "savez", save)
    second.add(np.zeros(3))
    (tmp_path / "a" / "00000000.half").mkdir()  # another's, being written
    PartialResults(tmp_path / "a").add(np.zeros(3))
    assert len(PartialResults(tmp_path / "a").done) == 2
