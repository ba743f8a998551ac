"""What is seen inside a model while it trains, against the same by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.data import Batches, load_tokens
from normlab.loss import token_nll
from normlab.model import Context, Transformer, placements
from normlab.norms import norms
from tests.conftest import same_trees, tiny_model
from tests.support.runs import tiny_config
from tests.training.test_trainer import last
from train.loop import Trainer, train
from train.step import learned
from train.watch import ROWS, make_look, plain

TOKENS = np.random.default_rng(0).integers(0, 97, (2, 8)).astype(np.int32)
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]


def seen(model, before=None, step=0):
    graphdef, params = nnx.split(model)
    return plain(jax.device_get(make_look(graphdef, 10)(params, before, step, INPUTS, TARGETS)))


def seen_uncompiled(model, before=None):
    """An operation at a time: compiling would take nearly all the time of a test."""
    with jax.disable_jit():
        return seen(model, before)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run that is looked into every five steps."""
    return train(tiny_config(tmp_path_factory.mktemp("runs"), watch_every=5))


def test_a_run_is_watched_at_the_start_every_so_often_and_at_the_end(watched):
    rows = watched.watched
    assert [r["step"] for r in rows] == [0, 5, 10, 12]
    assert all("update_ratio" not in p for p in rows[0]["parts"].values())
    for row in rows:
        assert len(row["stream"]) == 3  # the embedding's, and behind each of two blocks
        assert len(row["blocks"]) == 2
        assert set(row["sites"]) == set(row["sites"]) | {"blocks.1.mlp.norm_in", "norm_final"}
        assert set(row["parts"]) == {"blocks.0", "blocks.1", "embed", "norm_final"}
    assert all(0 < p["update_ratio"] < 1 for p in rows[-1]["parts"].values())


def test_the_steps_are_the_same_bits_with_and_without(watched, tmp_path):
    config = tiny_config(tmp_path)
    alone = train(config)
    assert alone.directory.name == watched.directory.name
    assert not alone["watch.jsonl"].exists()
    assert same_trees(last(alone, config), last(watched, config))
    pairs = zip(alone.metrics, watched.metrics, strict=True)
    assert all(a.get("loss") == b.get("loss") for a, b in pairs)


@pytest.mark.system
@pytest.mark.parametrize("stop", [4, 7])
def test_a_run_that_was_stopped_has_the_same_lines(watched, tmp_path, stop):
    config = tiny_config(tmp_path, watch_every=5)
    run = train(config, stop_after=stop)
    with run["watch.jsonl"].open("a") as file:
        file.write('{"step": 11, "half')
    assert train(config).watched == watched.watched


def test_what_is_seen_is_what_numpy_finds(watched, tmp_path):
    """The last line: sizes of activations, gradients, gains and the last step's update."""
    config = tiny_config(tmp_path)
    tokens = load_tokens(config.data)
    trainer = Trainer(config, tokens, watched)
    _, found = last(watched, config)
    model = nnx.merge(nnx.graphdef(fresh(config, tokens)), found["params"])
    inputs, targets = (w[:ROWS] for w in trainer.valid)
    context = Context(capture=True)
    model(inputs, context)
    row = watched.watched[-1]
    for name, x in context.inputs.items():
        x = np.asarray(x, np.float64)
        assert row["sites"][name]["mean_square"] == pytest.approx((x**2).mean(), rel=1e-4)
        assert row["sites"][name]["max_abs"] == pytest.approx(np.abs(x).max(), rel=1e-4)
        most = (x**2).sum(-1).max()
        assert row["sites"][name]["max_square"] == pytest.approx(most, rel=1e-4)
    gain = np.asarray(model.blocks[1].mlp.norm_in.gain[...])
    vector = row["vectors"]["blocks.1.mlp.norm_in.gain"]
    assert vector["mean"] == pytest.approx(gain.mean(), rel=1e-4)
    assert (vector["min"], vector["max"]) == pytest.approx((gain.min(), gain.max()), rel=1e-4)
    assert vector["std"] == pytest.approx(gain.std(), rel=1e-3)
    gradients = nnx.grad(lambda m: token_nll(m(inputs), targets).mean())(model)
    squares = [float((g**2).sum()) for g in jax.tree.leaves(gradients["blocks"][1])]
    norm = math.sqrt(sum(squares))
    assert row["parts"]["blocks.1"]["grad_norm"] == pytest.approx(norm, rel=1e-3)


def fresh(config, tokens):
    size = tokens.tokenizer.vocab_size
    return Transformer(config.model, config.norm, config.placement, size, config.seed)


@pytest.mark.system
def test_the_update_ratio_is_that_of_the_training_step(tmp_path):
    config = tiny_config(tmp_path, steps=3, eval_every=3, watch_every=1)
    run = train(config)
    trainer = Trainer(config, load_tokens(config.data), run)
    batches = Batches(trainer.tokens.split("train"), config.batch, config.window, config.seed)
    for step in range(3):
        before = np.asarray(trainer.params["embed"]["embedding"][...])
        batch = batches.at(step)
        trainer.params, trainer.state, _ = trainer.step(
            trainer.params, trainer.state, np.int32(step), *batch
        )
    moved = np.asarray(trainer.params["embed"]["embedding"][...]) - before
    ratio = np.linalg.norm(moved) / np.linalg.norm(before)
    assert run.watched[-1]["parts"]["embed"]["update_ratio"] == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"positions": "learned"},
        {"kv_heads": 1, "positions": "learned"},
        {"window": 3, "global_every": 2},
    ],
)
def test_attention_scores_are_those_of_pairs_that_attend(fields):
    model = tiny_model(**fields)
    context = Context(capture=True)
    model(INPUTS, context)
    attention = model.blocks[0].attention.branch
    h = Context().norm(model.blocks[0].attention.norm_in, context.streams[0])
    b, length, _ = h.shape
    q = np.asarray(attention.query(h)).reshape(b, length, 2, -1)
    k = np.asarray(attention.key(h)).reshape(b, length, attention.config.kv, -1)
    if attention.config.positions == "rotary":
        q, k = (np.asarray(attention._rotated(jnp.asarray(t))) for t in (q, k))
    most = 0.0
    for head in range(2):
        ours = k[:, :, head * k.shape[2] // 2]
        for i in range(length):
            first = 0 if attention.window is None else max(0, i - attention.window + 1)
            products = np.einsum("bk,bsk->bs", q[:, i, head], ours[:, first : i + 1])
            most = max(most, np.abs(products).max())
    assert float(context.scores[0]) == pytest.approx(most / math.sqrt(q.shape[-1]), rel=1e-5)


@pytest.mark.system
@pytest.mark.parametrize("norm", norms)
def test_every_norm_can_be_watched(norm):
    line = seen_uncompiled(tiny_model(norm, "pre", layers=1))
    assert set(line["sites"]) == {
        "blocks.0.attention.norm_in",
        "blocks.0.mlp.norm_in",
        "norm_final",
    }
    everything_is_a_number(line)


@pytest.mark.system
@pytest.mark.parametrize("placement", placements)
def test_every_placement_can_be_watched(placement):
    model = tiny_model("layernorm", placement)
    line = seen_uncompiled(model, before=learned(nnx.state(model)))
    sites = {m.site.name for _, m in nnx.iter_graph(model) if hasattr(m, "site")}
    assert set(line["sites"]) == sites
    assert all(p["update_ratio"] == 0.0 for p in line["parts"].values())
    everything_is_a_number(line)


def everything_is_a_number(line):
    leaves = jax.tree.leaves(line, is_leaf=lambda v: v is None)
    assert len(leaves) > 20
    assert None not in leaves


def test_what_is_no_finite_number_is_null():
    values = {"a": [np.float32("inf"), np.float32("nan"), np.float32(1 / 3)]}
    assert plain(values) == {"a": [None, None, 0.333333]}
