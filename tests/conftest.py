"""What all tests share: three tiers, no network, one cache of compiled programs, one tiny model."""

import os
import zlib
from datetime import date
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NORMLAB_CACHE", str(Path(__file__).parent / ".cache"))
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # What one test has compiled, no other worker, tier or command compiles again: not even an
    # operation by itself, of which there are hundreds.
    from normlab.commands.compile_cache import directory

    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(directory(Path(os.environ["NORMLAB_CACHE"])))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import settings

from normlab import progress
from normlab.model import Context, ModelConfig, PlacementConfig, Transformer
from normlab.norms import NormState, norms

settings.register_profile("tests", deadline=None)  # a busy machine is no fault
settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--slice", type=int, help="of the tests, one in so many, in turn by date")


def pytest_collection_modifyitems(config, items):
    """With --slice=N leave out all but today's N-th part."""
    parts = config.getoption("slice")
    if not parts:
        return
    today = date.today().toordinal() % parts
    mine = [item for item in items if zlib.crc32(item.nodeid.encode()) % parts == today]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(mine)])
    items[:] = mine


TINY = {"layers": 2, "width": 32, "heads": 2, "max_length": 64}
VOCAB = 97


@cache
def skeleton(norm, placement, vocab_size, norm_fields, placement_fields, fields):
    """A transformer's structure and the shapes of its weights; nothing is initialized."""
    config = ModelConfig(**(TINY | dict(fields)))
    where = PlacementConfig(type=placement, **dict(placement_fields))
    given = norms[norm].Config(**dict(norm_fields))
    return nnx.split(nnx.eval_shape(lambda: Transformer(config, given, where, vocab_size, 0)))


def tiny_model(
    norm="rmsnorm",
    placement="pre",
    *,
    seed=0,
    spread=0.3,
    dtype=np.float32,
    vocab_size=VOCAB,
    norm_fields=None,
    placement_fields=None,
    **fields,
):
    """The tests' one model: two blocks of width 32, random weights that NumPy makes.

    Matrices have rows and columns of unequal size, norm weights are log-normal around 1.

    Args:
        norm: its type.
        placement: its name.
        seed: of the weights; models that differ in it alone share every compiled program.
        spread: σ of the logarithm of norm weights, rows and columns; 0: all alike.
        dtype: of the weights; float64 wants `jax.enable_x64`.
        vocab_size: number of token ids.
        norm_fields: of the norm's config.
        placement_fields: of the placement's config.
        **fields: of the model's config; another shape is another program: for tests of shapes only.
    """
    keys = (tuple((given or {}).items()) for given in (norm_fields, placement_fields, fields))
    graphdef, shapes = skeleton(norm, placement, vocab_size, *keys)
    rng = np.random.default_rng(seed)

    def weight(path, variable):
        name, shape = jax.tree_util.keystr(path), variable.get_value().shape
        if isinstance(variable, NormState):  # as they start
            value = np.full(shape, float(name.endswith(("gate']", "variance']"))))
        elif len(shape) < 2:
            bias = "bias" in name
            value = 0.1 * rng.normal(size=shape) if bias else np.exp(rng.normal(0, spread, shape))
        else:
            rows, columns = (np.exp(rng.normal(0, spread, n)) for n in shape)
            value = 0.1 * rng.normal(size=shape) * rows[:, None] * columns
        return variable.replace(jnp.asarray(value, dtype))

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    params = jax.tree_util.tree_map_with_path(weight, shapes, is_leaf=is_variable)
    model = nnx.merge(graphdef, params)
    for table in (model.embed, model.positions):
        if table is not None:
            table.dtype = dtype
    return model


@partial(jax.jit, static_argnames=("graphdef", "precision", "capture", "observe"))
def _forward(graphdef, params, tokens, scales, precision, capture, observe):
    context = Context(precision, scales, capture=capture, observe=observe)
    logits = nnx.merge(graphdef, params)(tokens, context)
    names = ("inputs", "streams", "scores", "observed")
    return logits, {name: getattr(context, name) for name in names}


def forward(model, tokens, precision=None, scales=None):
    """A model's logits in one compiled program, which all models of one structure share."""
    return _forward(*nnx.split(model), tokens, scales, precision, False, False)[0]


def recorded(model, tokens, precision=None, scales=None):
    """(logits, what `Context` wrote down: inputs, streams, scores, observed), likewise compiled."""
    logits, seen = _forward(*nnx.split(model), tokens, scales, precision, True, True)
    return logits, SimpleNamespace(**seen)


def same_trees(a, b):
    """Whether two pytrees hold the same bits."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


@pytest.fixture
def tokens():
    """Some token ids, [2, 16]."""
    return np.random.default_rng(0).integers(0, VOCAB, (2, 16)).astype(np.int32)


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """`tests.support.runs.tiny_config`, trained to its end and left alone."""
    from normlab.training.trainer import train
    from tests.support.runs import tiny_config

    return train(tiny_config(tmp_path_factory.mktemp("alone")), asked=["steps=12"])


@pytest.fixture(autouse=True)
def no_sweep():
    """A test that begins a sweep in this process ends it, too."""
    yield
    progress.sweep.__init__()
