"""Rotary positions as configs spell them: the base of the frequencies, and what stretches them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.pretrained.keys import Keys
from normlab.pretrained.source import CheckpointError

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layer in `layer_types`, and in `rope_parameters` where the two differ."""


def rope(c: Keys, theta: float) -> Keys:
    """The rotary settings of global layers, in whichever of three spellings."""
    given = c.part("rope_parameters")
    spellings = {
        "config": {key: c.get(key) for key in ("rope_theta", "partial_rotary_factor")},
        "rope_scaling": c.part("rope_scaling").values,
        "rope_parameters": (given.part(FULL) if FULL in given.values else given).values,
    }
    return _agreed(c.where, spellings, theta)


def local_rope(c: Keys, theta: float) -> Keys:
    """Those of local layers, in whichever of two."""
    spellings = {
        "rope_local_base_freq": {"rope_theta": c.get("rope_local_base_freq")},
        "rope_parameters": c.part("rope_parameters").part(SLIDING).values,
    }
    return _agreed(c.where, spellings, theta)


def _agreed(where: str, spellings: Mapping[str, Mapping[str, Any]], theta: float) -> Keys:
    """What all spellings say together, and `theta` where none says it; nulls say nothing.

    Raises:
        CheckpointError: two of them say different things.
    """
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    for spelling, values in spellings.items():
        for key, value in values.items():
            key = "rope_type" if key == "type" else key
            if value is None:
                continue
            if key in found and found[key] != value:
                raise CheckpointError(
                    f"{where} has {key} = {found[key]!r} in {said[key]}, {value!r} in {spelling}: "
                    "expected one of them"
                )
            found[key], said[key] = value, said.get(key, spelling)
    return Keys({"rope_theta": theta} | found, where)


def divisors(rope: Keys, head_size: int) -> tuple[float, ...]:
    """By which the frequencies of a head that turns whole are divided; empty: by nothing."""
    kind = rope.word("rope_type", ("default", "linear", "llama3", "yarn", "listed"), "default")
    if kind == "default":
        rope.require("factor", 1)  # it scales nothing, but somebody meant it to
        return ()
    rope = Keys(rope.values, f"the {kind} rope scaling of {rope.where}")
    if kind == "listed":  # as a GGUF file has them
        listed = rope["divisors"]
        return tuple(Keys({"divisor": d}, rope.where).number("divisor") for d in listed)
    if kind == "linear":
        return (rope.number("factor"),) * (head_size // 2)
    return (_yarn_divisors if kind == "yarn" else _llama3_divisors)(rope, head_size)


def factor(rope: Keys) -> float:
    """What turned queries and keys are multiplied by (YaRN, arXiv:2309.00071, equation 22)."""
    kind = rope.get("rope_type")
    if kind != "yarn":
        return rope.number("attention_factor", 1.0) if kind == "listed" else 1.0
    for key in ("mscale", "mscale_all_dim"):
        rope.require(key, None)
    stretched = max(rope.number("factor"), 1.0)
    return rope.number("attention_factor", 0.1 * math.log(stretched) + 1.0)


def _yarn_divisors(rope: Keys, head_size: int) -> tuple[float, ...]:
    """Slow turns are stretched, fast ones kept, those between interpolated by their index.

    YaRN, arXiv:2309.00071, section 3.2: the borders are the indices, rounded outwards unless
    `truncate` is false, of which `beta_fast` and `beta_slow` turns fit the original length.
    """
    length, theta = rope.count("original_max_position_embeddings"), rope.number("rope_theta")

    def index(turns: float) -> float:
        return head_size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = index(rope.number("beta_fast", 32.0)), index(rope.number("beta_slow", 1.0))
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_size - 1)
    ramp = (np.arange(head_size // 2) - low) / max(high - low, 0.001)
    kept = 1.0 - np.clip(ramp, 0.0, 1.0)
    return tuple(float(d) for d in 1.0 / ((1.0 - kept) / rope.number("factor") + kept))


def _llama3_divisors(rope: Keys, head_size: int) -> tuple[float, ...]:
    """Llama 3.1's rule: slow turns are stretched, fast ones kept, those between interpolated."""
    half, factor = head_size // 2, rope.number("factor")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if low >= high:
        raise CheckpointError(
            f"{rope.where} has low_freq_factor = {low} and high_freq_factor = {high}: expected the "
            "first to be less"
        )
    frequency = rope.number("rope_theta") ** (-np.arange(half) / half)
    turns = rope.count("original_max_position_embeddings") * frequency / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return tuple(float(d) for d in 1.0 / ((1.0 - kept) / factor + kept))
