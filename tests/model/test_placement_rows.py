"""Each placement against its formula, and the property that its row of the table names."""

from itertools import pairwise

import jax
import numpy as np
import pytest
from flax import nnx

from normlab.model import ModelConfig, PlacementConfig, Transformer, placements
from normlab.norms import all_norms, norms
from normlab.runs.names import to_names
from tests.conftest import TINY, VOCAB, same_trees
from tests.support.passes import TOKENS, assert_causal, by_name, gradient, passed, placed
from tests.support.transformer_reference import Reference, nll, weights


def close(found, expected, limit=1e-5):
    """Equal within a share of the largest element."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit * np.abs(expected).max())


@pytest.mark.parametrize("name", placements)
def test_every_row_is_its_formula(name):
    """Logits, streams, inputs of norms; each norm that there is is visited."""
    model = placed(name)
    found, reference = passed(model), Reference(model)
    close(found.logits, reference.logits(TOKENS))
    for stream, expected in zip(found.streams, reference.streams, strict=True):
        close(stream, expected)
    sites = {norm.site.name for norm in all_norms(model)}
    assert found.inputs.keys() == reference.inputs.keys() == sites
    for site, x in found.inputs.items():
        close(x, reference.inputs[site].reshape(x.shape))


@pytest.mark.parametrize("name", placements)
def test_no_token_sees_a_later_one(name):
    assert_causal(placed(name))


@pytest.mark.parametrize("name", placements)
def test_a_scale_that_is_a_power_of_two_changes_no_bit(name):
    model, rng = placed(name), np.random.default_rng(0)
    plain = passed(model)
    scales = {site: 2.0 ** rng.integers(-6, 7) for site in plain.inputs}
    scaled = passed(model, scales=scales)
    assert same_trees(scaled.streams, plain.streams)
    assert np.array_equal(scaled.logits, plain.logits)


def unit_weights(model):
    """The model with norm weights of 1 and no biases in its norms."""
    arrays = {
        name: np.full_like(a, name.endswith(".weight")) if "norm" in name else a
        for name, a in weights(model).items()
    }
    return with_arrays(model, arrays)


def with_arrays(model, arrays):
    """The model with these arrays."""
    names = to_names(nnx.state(model))
    assert names.keys() == arrays.keys()
    leaves = [np.asarray(arrays[name], np.float32) for name in names]
    nnx.update(model, jax.tree.unflatten(jax.tree.structure(nnx.state(model)), leaves))
    return model


def scaled(model, factor, *maps):
    """The model with these maps of every block multiplied, their biases too."""
    arrays = weights(model)
    for name in arrays:
        if name.split(".")[-2] in maps:
            arrays[name] = arrays[name] * factor
    return with_arrays(model, arrays)


def change(placement, *maps, size=1.0):
    """How far the logits move when these maps, so much larger than they are, become larger."""
    model = scaled(placed(placement), size, *maps)
    before = passed(model).logits
    return np.abs(passed(scaled(model, 3.0, *maps)).logits - before).max()


def unseen(placement, *maps):
    """Whether that is nothing where no ε counts."""
    return change(placement, *maps, size=1e3) < 1e-4


def mean_square(x):
    return np.mean(np.square(np.float64(x)), axis=-1)


@pytest.mark.parametrize("name", ["post", "keel"])
def test_post_and_keel_leave_the_stream_normed(name):
    for x in passed(unit_weights(placed(name))).streams[1:]:
        np.testing.assert_allclose(mean_square(x), 1, rtol=1e-3)


def test_parallel_without_attention_is_pre():
    model, pre = (scaled(placed(row), 0.0, "out") for row in ("parallel", "pre"))
    assert np.array_equal(passed(model).logits, passed(pre).logits)


def test_keel_without_branches_is_a_norm():
    model = unit_weights(scaled(placed("keel"), 0.0, "out", "down"))
    stem, first, _ = map(np.float64, passed(model).streams)
    centred = stem - stem.mean(-1, keepdims=True)
    np.testing.assert_allclose(first, centred / centred.std(-1, keepdims=True), atol=1e-4)


def test_peri_variance_grows_by_one_a_sublayer():
    """Each branch adds a row of mean square 1; at the start it is nearly uncorrelated."""
    between = [f"blocks.{i}.{part}.norm_in" for i in range(2) for part in ("attention", "mlp")]
    grown = []
    for seed in range(16):
        found = passed(scaled(placed("peri", spread=0.0, seed=seed), 1e3, "out", "down"))
        streams = [np.float64(found.inputs[site]) for site in (*between, "norm_final")]
        for before, after in pairwise(streams):
            np.testing.assert_allclose(mean_square(after - before), 1, rtol=1e-4)
        grown.append(np.mean(mean_square(streams[-1]) - mean_square(streams[0])))
    assert np.mean(grown) == pytest.approx(4, rel=0.1)


def test_under_output_norms_the_size_of_a_branch_is_unseen():
    for placement in ("peri", "reordered"):
        assert unseen(placement, "out", "down"), placement
    assert unseen("peri", "value", "up")
    assert change("pre", "out", "down") > 1e-2


def test_sandwich_is_peri_bit_for_bit():
    peri, sandwich = passed(placed("peri")), passed(placed("sandwich"))
    assert np.array_equal(peri.logits, sandwich.logits)
    assert same_trees(peri.inputs, sandwich.inputs)


def test_sub_ln_does_not_see_the_size_of_values():
    for weight in ("value", "up"):
        assert unseen("sub-ln", weight), weight
    assert change("pre", "value") > 1e-2
    assert change("sub-ln", "out", "down") > 1e-2


def test_a_head_scale_of_zero_removes_the_head():
    scale, kernel = placed("normformer"), placed("normformer")
    arrays, zeroed = weights(scale), weights(kernel)
    for layer in range(2):
        branch = f"blocks.{layer}.attention.branch"
        arrays[f"{branch}.head_scale"][1] = 0
        zeroed[f"{branch}.out.kernel"][8:16] = 0  # the rows that read head 1 of 4
    without, with_ = passed(with_arrays(scale, arrays)), passed(placed("normformer"))
    close(without.logits, passed(with_arrays(kernel, zeroed)).logits)
    assert np.abs(without.logits - with_.logits).max() > 1e-2


def test_lns_is_pre_with_smaller_gains():
    arrays = weights(placed("lns"))
    for name in arrays:
        if name.startswith("blocks.1.") and name.endswith("norm_in.weight"):
            arrays[name] = arrays[name] / np.sqrt(2)
    close(passed(placed("lns")).logits, passed(with_arrays(placed("pre"), arrays)).logits)


def test_mix_ln_ends_in_pre_and_post():
    for share, name in ((0.0, "pre"), (1.0, "post")):
        mix, other = PlacementConfig("mix-ln", post_share=share), PlacementConfig(name)
        assert mix.around(2) == other.around(2)
        for part in ("attention", "mlp"):
            assert [mix.residual(part, i, 2) for i in range(2)] == [other.residual(part, 0, 2)] * 2
    half = placed("mix-ln")
    assert half.blocks[0].mlp.post_norm is not None
    assert half.blocks[1].mlp.post_norm is None
    assert half.norm_final is not None


def test_hybridnorm_does_not_see_the_size_of_q_k_v():
    for name in ("hybridnorm", "hybridnorm-star"):
        assert unseen(name, "query", "key", "value"), name
    assert change("pre", "query", "key", "value") > 1e-2


def test_hybridnorm_star_differs_in_its_first_block():
    star, base = PlacementConfig("hybridnorm-star"), PlacementConfig("hybridnorm")
    assert star.residual("attention", 0, 3).sites == {"norm_in", "norm_qk", "norm_v"}
    assert star.residual("mlp", 0, 3).sites == {"norm_in"}
    for layer in (1, 2):
        for part in ("attention", "mlp"):
            assert star.residual(part, layer, 3) == base.residual(part, layer, 3)


@pytest.mark.system
@pytest.mark.parametrize("name", placements)
def test_the_gradient_is_that_of_the_formula(name):
    """Against float64 differences along random directions, in which each array has its share."""
    model, rng = placed(name), np.random.default_rng(0)
    loss, found = gradient(model)
    arrays, found = weights(model), by_name(found)
    assert found.keys() == arrays.keys()
    assert all(np.any(g) for g in found.values())

    def value(moved):
        logits = Reference(model, moved).logits(TOKENS)
        return nll(logits[:, :-1], TOKENS[:, 1:]).mean()

    assert loss == pytest.approx(value(arrays), rel=1e-5)
    slopes, along = [], []
    for _ in range(3):
        v = {n: rng.normal(size=g.shape) / np.sqrt(g.size) for n, g in found.items()}
        there, back = (value({n: a + h * v[n] for n, a in arrays.items()}) for h in (1e-6, -1e-6))
        slopes.append((there - back) / 2e-6)
        along.append(sum((g * v[n]).sum() for n, g in found.items()))
    size = np.sqrt(sum((g**2).sum() for g in found.values()))
    np.testing.assert_allclose(along, slopes, rtol=0, atol=6e-5 * size)
    assert np.max(np.abs(slopes)) > 2e-3 * size, "else nothing was compared"


@pytest.mark.system
@pytest.mark.parametrize("name", placements)
def test_every_row_trains(name):
    """Twenty steps of one length on one batch: finite throughout, and well below the start."""
    model, losses = placed(name), []
    nnx.update(model, nnx.state(Transformer(model.config, model.norm, model.placement, VOCAB)))
    for _ in range(20):
        loss, found = gradient(model)
        losses.append(loss)
        size = np.sqrt(sum(np.vdot(g, g) for g in jax.tree.leaves(found)))
        step = lambda p, g, size=size: np.asarray(p) - 0.3 * g / size  # noqa: E731
        nnx.update(model, jax.tree.map(step, nnx.state(model), found))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.5


ROOT = 0.5  # of the outputs of two blocks, 1/√4
STARTS = {
    "pre": {"out": ROOT, "down": ROOT},
    "lns": {},
    "deepnorm": dict.fromkeys(("value", "out", "gate", "up", "down"), 16**-0.25),
    "sub-ln": dict.fromkeys(("value", "out", "gate", "up", "down"), np.sqrt(np.log(4))),
}


@pytest.mark.parametrize("placement", STARTS)
def test_initial_gains_fall_on_values_outputs_and_mlp(placement, monkeypatch):
    """Each matrix's standard deviation at the start, over √(2/5d) or `init_std`."""
    told = lambda std: lambda key, shape, dtype: np.full(shape, std, dtype)  # noqa: E731
    monkeypatch.setattr(jax.nn.initializers, "normal", told)
    row, norm = PlacementConfig(placement), norms["rmsnorm"].Config()
    for std, asked in ((np.sqrt(0.4 / 32), {}), (0.1, {"init_std": 0.1})):
        found = weights(Transformer(ModelConfig(**TINY, **asked), norm, row, VOCAB))
        assert found.pop("embed.embedding") == pytest.approx(std)
        for name in found:
            if name.endswith(".kernel"):
                expected = std * STARTS[placement].get(name.split(".")[-2], 1)
                assert found[name] == pytest.approx(expected, rel=1e-5), name
