"""A model in words: what every family asks for, and what stretches rotary frequencies."""

import numpy as np
import pytest

from normlab.model import ModelConfig
from normlab.pretrained.export.fit import NoFamily, fitted
from normlab.pretrained.export.words import Asked, words
from normlab.pretrained.families.rope import divisors
from normlab.pretrained.keys import Keys
from tests.conftest import tiny_model

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def said(**fields):
    return words(ModelConfig(**fields), 97, 1e-5, parallel=False, post=False)


def test_words_that_nobody_asked_for_are_left_out():
    asked = Asked({"a": 1, "b": 2, "c": None})
    assert (asked.get("c"), asked.get("d", 4), "b" in asked) == (None, 4, True)
    assert asked.answered() == {"b": 2, "c": None}


@pytest.mark.parametrize("scaling", [LLAMA31, {"rope_type": "linear", "factor": 4.0}])
def test_divisors_of_a_gguf_file_are_the_type_that_they_come_from(scaling):
    """There they are numbers in float32."""
    made = divisors(Keys(scaling | {"rope_theta": 5e5}, "here"), 128)
    listed = tuple(float(np.float32(d)) for d in made)
    told = said(head_dim=128, rope_theta=5e5, rope_divisors=listed)["rope_scaling"]
    assert told == {
        k: pytest.approx(v, rel=1e-6) if k == "factor" else v for k, v in scaling.items()
    }


def test_divisors_that_no_type_gives_are_refused():
    with pytest.raises(NoFamily, match="has rope_scaling = no type with these"):
        fitted(tiny_model(rope_divisors=(1.0, 3.0, 2.0, 5.0, 1.0, 3.0, 2.0, 5.0)))


def test_a_scale_is_the_number_that_it_came_from():
    assert said(attention_scale=224**-0.5)["query_pre_attn_scalar"] == 224
    assert said(attention_scale=0.3)["query_pre_attn_scalar"] == 0.3**-2
