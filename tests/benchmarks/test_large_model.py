"""The benchmark of a 7B model: its shape, and all of it on a small one."""

import math

import pytest
from large_model import CONFIG, PRECISIONS, measure, shapes, write


def count(config) -> int:
    return sum(math.prod(shape) for file in shapes(config) for shape in file.values())


def test_the_shape_is_that_of_llama_2_7b():
    assert count(CONFIG) == 6_738_415_616


@pytest.mark.system
def test_a_small_one_is_written_loaded_and_scored(tmp_path):
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    size = {"hidden_size": 32, "intermediate_size": 86, "num_hidden_layers": 2, "vocab_size": 260}
    config = CONFIG | heads | size
    write(tmp_path, config)
    found = measure(tmp_path, config, 16)
    assert found["weights_bytes"] == 4 * count(config)
    assert found["largest_tensor_bytes"] == 4 * 260 * 32
    assert list(found["seconds_a_window"]) == list(PRECISIONS)
