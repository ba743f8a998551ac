"""Adding a norm touches one file: the one written here, and nothing else."""

import importlib.util
import sys

import pytest

import normlab.runs.run
from normlab.norms import norms
from normlab.training.trainer import train
from tests.support.runs import tiny_config

TOY = '''
"""One file with one registered class."""

from dataclasses import dataclass

import jax.numpy as jnp

from normlab.config import field
from normlab.norms import Norm, NormConfig, norms


@dataclass(frozen=True)
class ToyConfig(NormConfig):
    """What the toy can be told."""

    type: str = field("toy", "norm type")
    use_weight: bool = field(True, "a weight")
    power: float = field(1.0, "exponent of the divisor")


@norms.register("toy")
class Toy(Norm):
    """x over a power of its mean absolute value."""

    Config = ToyConfig

    def __call__(self, x, acc):
        size = jnp.abs(x).mean(-1, keepdims=True) + 1e-6
        return self.affine(x / size**self.config.power)
'''


@pytest.fixture
def toy(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(TOY)
    spec = importlib.util.spec_from_file_location("toy", file)
    sys.modules["toy"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    norms.remove("toy")
    del sys.modules["toy"]


@pytest.mark.system
def test_one_file_trains_is_saved_and_comes_back(toy, tmp_path):
    config = tiny_config(tmp_path / "runs", norm={"type": "toy", "power": 0.9}, steps=30)
    run = train(config)
    valid = [r["valid_loss"] for r in run.metrics if "valid_loss" in r]
    assert valid[-1] < valid[0] - 0.5
    assert run.directory.name.startswith("toy-pre-")
    loaded = normlab.runs.run.load(run.directory).model
    assert isinstance(loaded.norm_final, toy.Toy)
    assert loaded.norm == toy.ToyConfig(power=0.9)
