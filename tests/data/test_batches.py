import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from normlab.data import Batches


@st.composite
def sizes(draw):
    """(length of the split, batch_size, window) with room for one batch or more."""
    batch, window = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    return batch * window + 1 + draw(st.integers(0, 200)), batch, window


def counting(length: int) -> np.ndarray:
    return np.arange(length, dtype=np.int32)


ONE = (3 * 7 + 1, 3, 7)
"""A split of one batch exactly."""


@given(sizes(), st.integers(0, 2**32), st.integers(0, 500))
@example(ONE, 0, 5)
def test_shapes_shift_and_purity(size, seed, step):
    length, batch, window = size
    batches = Batches(counting(length), batch, window, seed)
    inputs, targets = batches.at(step)
    assert inputs.shape == targets.shape == (batch, window)
    assert inputs.dtype == targets.dtype == np.int32
    np.testing.assert_array_equal(targets, inputs + 1)  # the split counts up
    np.testing.assert_array_equal(inputs - inputs[:, :1], np.tile(np.arange(window), (batch, 1)))
    batches.at(step + 1)
    again = Batches(counting(length), batch, window, seed).at(step)
    np.testing.assert_array_equal(again.inputs, inputs)


@given(sizes(), st.integers(0, 3), st.integers(0, 3))
@example(ONE, 0, 1)
def test_an_epoch_reads_no_token_twice_and_most_of_them(size, seed, epoch):
    length, batch, window = size
    batches = Batches(counting(length), batch, window, seed)
    assert batches.steps_per_epoch == max(1, (length - window) // (batch * window))
    steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
    read = np.concatenate([batches.at(step).inputs.ravel() for step in steps])
    assert len(set(read.tolist())) == len(read)
    assert length - len(read) <= batch * window + window


def test_seeds_and_epochs_differ_in_order_and_offset():
    batches = Batches(counting(1000), 4, 10, seed=0)
    epochs = [
        np.stack([batches.at(e * batches.steps_per_epoch + i).inputs for i in range(5)])
        for e in range(20)
    ]
    assert len({e.tobytes() for e in epochs}) == 20
    offsets = {int(e.min()) % 10 for e in epochs}
    assert len(offsets) > 5
    other = Batches(counting(1000), 4, 10, seed=1)
    assert not np.array_equal(batches.at(0).inputs, other.at(0).inputs)


def test_every_offset_is_possible_and_all_tokens_are_met_in_the_long_run():
    batches = Batches(counting(61), 2, 10, seed=0)
    seen = {t for step in range(300) for t in batches.at(step).inputs.ravel().tolist()}
    assert seen == set(range(60))  # the last token is only ever a target


def test_too_short_a_split_says_what_is_needed():
    with pytest.raises(ValueError, match=r"21 tokens.*3 windows of 7.*22.* smaller batch or"):
        Batches(counting(3 * 7), 3, 7, seed=0)
    for bad in ({"batch_size": 0}, {"window": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Batches(counting(100), **({"batch_size": 1, "window": 1, "seed": 0} | bad))


def test_reads_a_memory_mapped_split(tmp_path):
    np.save(tmp_path / "ids.npy", counting(100))
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    batch = Batches(mapped, 2, 8, seed=3).at(2)
    np.testing.assert_array_equal(batch.inputs, Batches(counting(100), 2, 8, seed=3).at(2).inputs)
    assert not isinstance(batch.inputs, np.memmap)


def test_of_rows_only_the_part_that_is_asked_for_is_read():
    class Spy:
        def __init__(self, tokens):
            self.tokens, self.read = tokens, set()

        def __len__(self):
            return len(self.tokens)

        def __getitem__(self, places):
            self.read |= set(places.ravel().tolist())
            return self.tokens[places]

    spy = Spy(counting(500).astype(np.uint16))
    batches = Batches(spy, 4, 8, seed=5)
    whole = Batches(counting(500), 4, 8, seed=5).at(3)
    inputs, targets = batches.rows(3)
    assert (inputs.shape, len(inputs), spy.read) == ((4, 8), 4, set())
    np.testing.assert_array_equal(inputs[slice(2, 4), slice(None)], whole.inputs[2:4])
    np.testing.assert_array_equal(targets[1:3, 2:5], whole.targets[1:3, 2:5])
    assert spy.read == {*whole.inputs[2:4].ravel().tolist(), *whole.targets[1:3].ravel().tolist()}
    assert np.asarray(inputs).dtype == np.int32
