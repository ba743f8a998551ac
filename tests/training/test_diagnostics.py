"""What is seen inside a model while it trains, against the same in NumPy."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from normlab.loss import token_nll
from normlab.model import Context, placements
from normlab.norms import norms
from normlab.runs.run import Run
from normlab.training.diagnostics import ROWS, Diagnostics, make_look, plain
from normlab.training.step import learned
from normlab.training.trainer import train
from tests.conftest import VOCAB, skeleton, tiny_model
from tests.support.runs import logged, same_ends, saved, tiny_config

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 17)).astype(np.int32)
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]
MODEL = {"kv_heads": 1, "window": 3, "global_every": 2}
"""One local block of grouped queries and one global one."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(**MODEL)


@pytest.fixture(scope="module")
def before():
    """Other weights, as if they were those before the last step."""
    return learned(nnx.split(tiny_model(seed=1, **MODEL))[1])


@pytest.fixture(scope="module")
def line(model, before):
    """What is seen in the model."""
    graphdef, params = nnx.split(model)
    look = make_look(graphdef, 10)
    return plain(jax.device_get(look(params, before, np.int32(3), INPUTS, TARGETS)))


@pytest.fixture(scope="module")
def seen(model):
    """The gradients of the same loss, and the same activations: (gradients, inputs, streams)."""
    graphdef, params = nnx.split(model)

    def loss(params):
        context = Context(capture=True)
        nll = token_nll(nnx.merge(graphdef, params)(INPUTS, context), TARGETS).mean()
        return nll, (context.inputs, context.streams)

    gradients, activations = jax.jit(jax.grad(loss, has_aux=True))(params)
    return gradients, *activations


def test_sizes_of_activations_are_those_of_numpy(model, line, seen):
    _, inputs, streams = seen
    sites = {name for name, module in nnx.iter_graph(model) if hasattr(module, "site")}
    assert len(sites) == len(line["sites"]) == len(inputs) == 5
    assert len(line["stream"]) == len(streams) == 3
    pairs = [(line["sites"][name], x) for name, x in inputs.items()]
    for values, x in [*pairs, *zip(line["stream"], streams, strict=True)]:
        x = np.asarray(x, np.float64)
        expected = {
            "mean_square": (x**2).mean(),
            "max_abs": np.abs(x).max(),
            "max_square": (x**2).sum(-1).max(),
        }
        assert values == pytest.approx(expected, rel=1e-4)


def test_gradients_and_updates_are_measured_by_part(model, before, line, seen):
    names = {"blocks.0", "blocks.1", "embed", "norm_final"}
    assert set(line["parts"]) == names

    def size(tree, name):
        for key in name.split("."):
            tree = tree[int(key) if key.isdigit() else key]
        return math.sqrt(sum(np.sum(np.float64(x) ** 2) for x in jax.tree.leaves(tree)))

    weights = learned(nnx.split(model)[1])
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), weights, before)
    for name in names:
        values = line["parts"][name]
        assert values["grad_norm"] == pytest.approx(size(seen[0], name), rel=1e-3)
        ratio = size(moved, name) / size(before, name)
        assert values["update_ratio"] == pytest.approx(ratio, rel=1e-4)


def test_vectors_are_described(model, line):
    weight = np.asarray(model.blocks[1].mlp.norm_in.weight[...], np.float64)
    found = line["vectors"]["blocks.1.mlp.norm_in.weight"]
    expected = {
        "mean": weight.mean(),
        "min": weight.min(),
        "max": weight.max(),
        "std": weight.std(),
    }
    assert found == pytest.approx(expected, rel=1e-4)
    assert len(line["vectors"]) == 5


def rotated(x):
    """Rotary positions in NumPy: element i turned with element i + k/2."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] * 10000.0 ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def test_attention_scores_are_those_of_pairs_that_attend(model, line, seen):
    streams = seen[2]
    assert [b.attention.branch.window for b in model.blocks] == [3, None]
    for block, stream, found in zip(model.blocks, streams[:2], line["blocks"], strict=True):
        attention, x = block.attention.branch, np.asarray(stream, np.float64)
        weight = np.asarray(block.attention.norm_in.weight[...])
        h = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight
        q, k = (
            rotated((h @ np.asarray(part.kernel[...])).reshape(*h.shape[:2], -1, 16))
            for part in (attention.query, attention.key)
        )
        assert [q.shape[2], k.shape[2]] == [2, 1]
        products = np.abs(np.einsum("blhk,bsk->bhls", q, k[:, :, 0])) / 4
        age = np.arange(16)[:, None] - np.arange(16)
        attends = (age >= 0) & (age < (attention.window or 16))
        assert found["attention_score"] == pytest.approx(products[..., attends].max(), rel=1e-4)
        assert products.max() > products[..., attends].max()


def test_what_is_no_finite_number_is_null():
    values = {"a": [np.float32("inf"), np.float32("nan"), np.float32(1 / 3)]}
    assert plain(values) == {"a": [None, None, 0.333333]}


def test_a_look_is_due_at_the_start_every_so_often_and_at_the_end(tmp_path, monkeypatch):
    asked, params = [], nnx.State({})
    gradient, update = {"grad_norm": 2.0}, {"update_ratio": 1.0}

    def look(*given):
        asked.append(given)
        return {"a": 1.0, "parts": {"head": gradient | update}}

    monkeypatch.setattr("normlab.training.diagnostics.make_look", lambda *_: look)
    windows = tuple(np.arange(10 * ROWS).reshape(-1, 5) + i for i in range(2))
    assert not Diagnostics(Run(tmp_path), None, 12, None, windows).due(0)
    watch = Diagnostics(Run(tmp_path), None, 12, 5, windows)
    assert [step for step in range(13) if watch.due(step)] == [0, 5, 10, 12]
    watch.after(0, params)
    watch.before(4, params)
    watch.after(5, params)
    watch.before(5, params)
    watch.after(5, params)
    for *_, inputs, targets in asked:
        np.testing.assert_array_equal(inputs, windows[0][:ROWS])
        np.testing.assert_array_equal(targets, windows[1][:ROWS])
    head = [line["parts"]["head"] for line in Run(tmp_path).diagnostics]
    assert head == [gradient, gradient, gradient | update], "an update has weights before it"
    assert [(line["step"], line["a"]) for line in Run(tmp_path).diagnostics] == [
        (s, 1.0) for s in (0, 5, 5)
    ]


WALK = [(norm, "pre", 1) for norm in norms] + [("layernorm", row, 2) for row in placements]


def structure(norm, placement, layers):
    return skeleton(norm, placement, VOCAB, (), (), (("layers", layers),))


@pytest.mark.system
@pytest.mark.parametrize(("norm", "placement", "layers"), WALK)
def test_every_norm_and_placement_can_be_watched(norm, placement, layers):
    """By shapes alone: nothing is compiled."""
    graphdef, shapes = structure(norm, placement, layers)
    given = (shapes, learned(shapes), np.int32(0), INPUTS, TARGETS)
    seen = jax.eval_shape(make_look(graphdef, 10), *given)
    module = nnx.merge(graphdef, shapes)
    sites = {m.site.name for _, m in nnx.iter_graph(module) if hasattr(m, "site")}
    assert set(seen["sites"]) == sites
    assert len(seen["blocks"]) == layers
    assert len(seen["stream"]) == layers + 1
    assert all(set(p) == {"grad_norm", "update_ratio"} for p in seen["parts"].values())
    assert all(x.shape == () for x in jax.tree.leaves(seen))


@pytest.mark.extended
@pytest.mark.parametrize(("norm", "placement", "layers"), WALK)
def test_of_every_norm_and_placement_numbers_are_seen(norm, placement, layers):
    graphdef, params = nnx.split(tiny_model(norm, placement, layers=layers))
    look = make_look(graphdef, 10)
    line = plain(jax.device_get(look(params, learned(params), np.int32(0), INPUTS, TARGETS)))
    assert all(p["update_ratio"] == 0.0 for p in line["parts"].values())
    leaves = jax.tree.leaves(line, is_leaf=lambda v: v is None)
    assert len(leaves) > 20
    assert None not in leaves


# --- while it trains


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that is looked into every five steps."""
    return train(tiny_config(tmp_path_factory.mktemp("runs"), diagnostics_every=5))


@pytest.mark.system
def test_the_steps_are_the_same_bits_with_and_without(watched, alone):
    assert alone.directory.name == watched.directory.name
    assert same_ends(alone, watched, tiny_config("unused"))
    assert logged(alone) == logged(watched)
    rows = watched.diagnostics
    assert [r["step"] for r in rows] == [0, 5, 10, 12]
    assert all("update_ratio" not in p for p in rows[0]["parts"].values())
    assert all(0 < p["update_ratio"] < 1 for p in rows[-1]["parts"].values())


@pytest.mark.system
def test_a_run_that_was_stopped_has_the_same_lines(watched, tmp_path):
    config = tiny_config(tmp_path, diagnostics_every=5)
    run = train(config, stop_after=7)
    with run["diagnostics.jsonl"].open("a") as file:
        file.write('{"step": 11, "half')
    assert train(config).diagnostics == watched.diagnostics


@pytest.mark.system
def test_the_update_ratio_is_that_of_the_training_step(tmp_path):
    config = tiny_config(tmp_path, diagnostics_every=5, eval_every=1)
    run = train(config, stop_after=5)
    before, now = (
        np.asarray(trees["params"]["embed"]["embedding"][...])
        for trees in saved(config, (run, 4), (run, 5))
    )
    ratio = np.linalg.norm(now - before) / np.linalg.norm(before)
    assert run.diagnostics[-1]["parts"]["embed"]["update_ratio"] == pytest.approx(ratio, rel=1e-4)
