from dataclasses import dataclass

import pytest

from normlab.config import build, describe, field, require, to_dict
from normlab.norms import NormConfig, norms
from normlab.registry import UnknownNameError


@dataclass(frozen=True)
class Inner:
    size: int = field(3, "how large")
    rate: float | None = field(None, "how fast")

    def __post_init__(self):
        require(self.size > 0, f"size = {self.size}: expected > 0")


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(Inner, "what is inside")
    names: tuple[str, ...] = field(("a",), "what it is called")
    on: bool = field(False, "whether")


def test_builds_nested_configs_and_keeps_defaults():
    built = build(Outer, {"inner": {"rate": 2}, "names": ["x", "y"]})
    assert built == Outer(Inner(3, 2.0), ("x", "y"), False)
    assert build(Outer, to_dict(built)) == built


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"key of inner 'sise'. Did you mean 'size'"):
        build(Outer, {"inner": {"sise": 1}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"size": "3"}}, "inner.size = '3': expected a whole number"),
        ({"inner": {"size": True}}, "inner.size = True: expected a whole number"),
        ({"inner": {"size": 1.5}}, "inner.size = 1.5: expected a whole number"),
        ({"on": 1}, "on = 1: expected true or false"),
        ({"names": 1}, "names = 1: expected a list"),
        ({"names": ["x", 1]}, r"names\[1\] = 1: expected text"),
        ({"inner": 3}, r"inner = 3: expected inner\.FIELD, a field of it: size, rate"),
    ],
)
def test_a_wrong_type_is_refused_with_its_path(values, message):
    with pytest.raises(TypeError, match=message):
        build(Outer, values)


def test_the_dataclass_itself_has_the_last_word():
    with pytest.raises(ValueError, match="size = 0: expected > 0"):
        build(Outer, {"inner": {"size": 0}})


def test_describe_walks_to_the_leaves():
    assert list(describe(Outer())) == [
        ("inner.size", 3, "how large"),
        ("inner.rate", None, "how fast"),
        ("names", ("a",), "what it is called"),
        ("on", False, "whether"),
    ]


def test_a_norms_type_chooses_its_config_class():
    assert build(NormConfig, {"type": "dyt", "alpha": 0.5}) == norms["dyt"].Config(alpha=0.5)
    with pytest.raises(UnknownNameError, match="unknown norm 'dtt'. Did you mean 'dyt'"):
        build(NormConfig, {"type": "dtt"})
