import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from normlab.model import placements
from normlab.norms import norms
from normlab.parallel import sharding
from normlab.runs.names import to_names
from tests.conftest import skeleton

ATTENTION, MLP = "blocks.0.attention.branch.", "blocks.0.mlp.branch."


@pytest.mark.parametrize(
    ("name", "shape", "over_model", "and_data"),
    [
        (ATTENTION + "query.kernel", (32, 32), P(None, "model"), P("data", "model")),
        (ATTENTION + "value.kernel", (32, 16), P(None, "model"), P("data", "model")),
        (ATTENTION + "key.bias", (16,), P("model"), P("model")),
        (ATTENTION + "out.kernel", (32, 32), P("model", None), P("model", "data")),
        (ATTENTION + "out.bias", (32,), P(None), P(None)),
        (MLP + "up.kernel", (32, 88), P(None, "model"), P("data", "model")),
        (MLP + "down.kernel", (88, 32), P("model", None), P("model", "data")),
        ("embed.embedding", (300, 32), P("model", None), P("model", "data")),
        ("embed.embedding", (299, 32), P(None, "model"), P(None, "model")),
        ("head.kernel", (32, 300), P(None, "model"), P("data", "model")),
        ("positions.embedding", (64, 32), P(None, None), P("data", None)),
        ("norm_final.weight", (32,), P(None), P(None)),
        (ATTENTION + "query.kernel", (3, 32, 32), P(None, None, "model"), P(None, "data", "model")),
        ("blocks.0.mlp.norm_in.weight", (4, 32), P(None, None), P(None, None)),
        ("branch_gain", (), P(), P()),
    ],
)
def test_the_table_of_where_weights_lie(name, shape, over_model, and_data):
    assert sharding.spec(name, shape, data=2, model=4, parameters=False) == over_model
    assert sharding.spec(name, shape, data=2, model=4, parameters=True) == and_data


def test_without_tensor_parallelism_the_larger_axis_is_cut():
    assert sharding.spec(MLP + "up.kernel", (32, 88), 4, 1, True) == P(None, "data")
    assert sharding.spec(MLP + "down.kernel", (88, 32), 4, 1, True) == P("data", None)
    assert sharding.spec("embed.embedding", (299, 32), 4, 1, True) == P(None, "data")
    assert sharding.spec(MLP + "up.kernel", (32, 88), 4, 1, False) == P(None, None)


def shapes(norm="rmsnorm", placement="pre", **fields):
    """A tiny model's state, by its shapes alone."""
    return skeleton(norm, placement, 96, (), (), tuple(fields.items()))[1]


@pytest.mark.parametrize(
    ("norm", "placement", "fields"),
    [("layernorm", p, {"bias": True, "tied": False, "positions": "learned"}) for p in placements]
    + [(n, "pre", {"layers": 1}) for n in norms],
)
def test_every_matrix_is_divided_and_no_norm(norm, placement, fields):
    for name, weight in to_names(shapes(norm, placement, **fields)).items():
        axes = [a for a in sharding.spec(name, weight.shape, 2, 2, True) if a is not None]
        owner, kind = name.split(".")[-2:] if "." in name else ("", name)
        if kind in ("kernel", "embedding"):
            assert axes == ["data"] if owner == "positions" else sorted(axes) == ["data", "model"]
        elif kind == "bias" and owner in ("query", "key", "value", "gate", "up"):
            assert axes == ["model"]
        else:
            assert axes == [], name


def test_moments_lie_as_their_weights_do():
    weights = nnx.filter_state(shapes(), nnx.Param)
    state = to_names(jax.eval_shape(optax.adamw(1e-3).init, weights))
    for name, weight in to_names(weights).items():
        kept = [k for k in state if k.endswith(f".{name}")]
        assert len(kept) == 2
        where = {sharding.spec(k, weight.shape, 2, 2, True) for k in [name, *kept]}
        assert len(where) == 1


def test_without_a_mesh_nothing_is_touched():
    tree, batch = {"a": np.ones(3)}, np.ones((4, 2))
    assert sharding.shard_params(tree) is tree
    assert sharding.shard_batch(batch, batch)[1] is batch
    assert sharding.padded_rows(5) == 5
    x = jax.numpy.ones((2, 3))
    assert sharding.whole_rows(x) is x
    assert sharding.replicate(tree) is tree
    assert sharding.sharding("embed.embedding", (4, 2)).device_set == {jax.devices()[0]}
    assert not str(jax.make_jaxpr(sharding.whole_rows)(x)).count("sharding")
