"""What distinguishes each placement: the property that its row of the table names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.checkpoint import to_names
from normlab.loss import token_nll
from normlab.model import Context, ModelConfig, PlacementConfig, Transformer, placements
from normlab.norms import norms
from tests.conftest import TINY

QUICK = {"xla_backend_optimization_level": 0}  # compiling is all that these tests wait for
TOKENS = np.random.default_rng(0).integers(0, 97, (2, 16)).astype(np.int32)


def build(placement, eps=1e-5, where=None, uneven=True, **fields):
    """A tiny RMSNorm transformer; `uneven`: gains and scales are not all 1."""
    config = ModelConfig(**(TINY | fields))
    norm = norms["rmsnorm"].Config(eps=eps)
    model = Transformer(config, norm, PlacementConfig(placement, **(where or {})), 97)
    if uneven:
        key = iter(jax.random.split(jax.random.key(1), 100))
        bump = lambda p: p + 0.3 * jax.random.normal(next(key), p.shape) if p.ndim == 1 else p  # noqa: E731
        nnx.update(model, jax.tree.map(bump, nnx.state(model)))
    return model


def take(model, other):
    """`model` with the parameters of `other`, which must have the same names."""
    assert to_names(nnx.state(model)).keys() == to_names(nnx.state(other)).keys()
    nnx.update(model, nnx.state(other))
    return model


def change(model, scale, *weights):
    """How far the logits move when these weights of every block are scaled."""
    before = model(TOKENS)
    for block in model.blocks:
        for weight in weights:
            branch = block.mlp if weight in ("gate", "up", "down") else block.attention
            getattr(branch.branch, weight).kernel[...] *= scale
    return float(np.abs(model(TOKENS) - before).max())


def rms(x, eps=1e-5):
    return x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + eps)


def sublayer(placement, **fields):
    """The stream into and out of the first attention, and the sublayer."""
    model = build(placement, uneven=False, **fields)
    x = model.stem(TOKENS, Context())
    part = model.blocks[0].attention
    return part, x, part(x, Context())


def test_pre_is_x_plus_f_of_norm():
    part, x, y = sublayer("pre")
    np.testing.assert_allclose(y, x + part.branch(rms(x), Context()), atol=1e-5)


def test_post_is_norm_of_x_plus_f():
    part, x, y = sublayer("post")
    np.testing.assert_allclose(y, rms(x + part.branch(x, Context())), atol=1e-4)


def test_peri_is_x_plus_norm_of_f_of_norm():
    part, x, y = sublayer("peri")
    np.testing.assert_allclose(y, x + rms(part.branch(rms(x), Context())), atol=1e-4)


def test_peri_variance_grows_by_one_a_sublayer():
    """Each branch adds a row of mean square 1; at the start it is nearly uncorrelated."""
    model = build("peri", eps=1e-12, uneven=False, layers=3, width=64)
    context, x = Context(), model.stem(TOKENS, Context())
    start = np.mean(np.square(x))
    for block in model.blocks:
        for part in (block.attention, block.mlp):
            y = part(x, context)
            np.testing.assert_allclose(np.mean(np.square(y - x), -1), 1, rtol=1e-4)
            x = y
    assert np.mean(np.square(x)) - start == pytest.approx(6, rel=0.1)


def test_under_output_norms_the_size_of_a_branch_is_unseen():
    for placement in ("peri", "reordered"):
        assert change(build(placement, eps=0.0), 3.0, "out", "down") < 1e-4, placement
        assert change(build(placement, eps=0.0), 3.0, "value", "up") < 1e-4, placement
    assert change(build("pre", eps=0.0), 3.0, "out", "down") > 1e-2


def test_a_reordered_block_reads_the_raw_stream():
    part, x, y = sublayer("reordered")
    np.testing.assert_allclose(y, x + rms(part.branch(x, Context())), atol=1e-4)


def test_sandwich_is_peri_bit_for_bit():
    peri, sandwich = build("peri"), build("sandwich")
    assert to_names(nnx.state(peri)).keys() == to_names(nnx.state(sandwich)).keys()
    assert np.array_equal(peri(TOKENS), sandwich(TOKENS))


WEIGHTS = [f"attention.branch.{w}" for w in ("query", "key", "value", "out")]
WEIGHTS += [f"mlp.branch.{w}" for w in ("gate", "up", "down")]


def initial_ratios(placement, **fields):
    """Each weight of the first block at the start, as a multiple of the config's std."""
    plain = to_names(nnx.state(build("lns", uneven=False, **fields)))  # every map at that std
    found = to_names(nnx.state(build(placement, uneven=False, **fields)))
    return {
        w: np.median(found[f"blocks.0.{w}.kernel"] / plain[f"blocks.0.{w}.kernel"]) for w in WEIGHTS
    }


@pytest.mark.parametrize(
    ("placement", "gain"), [("deepnorm", 16**-0.25), ("sub-ln", np.sqrt(np.log(4)))]
)
def test_initial_gains_fall_on_values_outputs_and_mlp(placement, gain):
    for weight, ratio in initial_ratios(placement).items():
        expected = 1 if weight.endswith(("query", "key")) else gain
        assert ratio == pytest.approx(expected, rel=1e-5), weight


def test_other_rows_start_their_outputs_smaller_by_the_root_of_the_branches():
    for weight, ratio in initial_ratios("hybridnorm").items():
        expected = 0.5 if weight.endswith(("out", "down")) else 1
        assert ratio == pytest.approx(expected, rel=1e-5), weight


def test_deepnorm_without_its_constants_is_post():
    deep, post = build("deepnorm"), build("post")
    assert np.abs(take(deep, post)(TOKENS) - post(TOKENS)).max() > 1e-2
    for block in deep.blocks:
        block.attention.alpha = block.mlp.alpha = 1.0
    assert np.array_equal(deep(TOKENS), post(TOKENS))


def test_deepnorm_is_norm_of_alpha_x_plus_f():
    part, x, y = sublayer("deepnorm")
    np.testing.assert_allclose(y, rms(4**0.25 * x + part.branch(x, Context())), atol=1e-4)


def test_sub_ln_does_not_see_the_size_of_values():
    assert change(build("sub-ln", eps=0.0), 3.0, "value") < 1e-4
    assert change(build("sub-ln", eps=0.0), 3.0, "up") < 1e-4
    relu = {"gated": False, "activation": "relu"}
    assert change(build("sub-ln", eps=0.0, **relu), 3.0, "gate") < 1e-4
    assert change(build("pre", eps=0.0), 3.0, "value") > 1e-2
    assert change(build("sub-ln", eps=0.0), 3.0, "out", "down") > 1e-2


def test_a_head_scale_of_zero_removes_the_head():
    model, other = build("normformer"), build("normformer")
    for block, twin in zip(model.blocks, other.blocks, strict=True):
        branch = block.attention.branch
        branch.head_scale[...] = branch.head_scale[...].at[1].set(0.0)
        kernel = twin.attention.branch.out.kernel
        kernel[...] = kernel[...].at[16:].set(0.0)  # the rows that read head 1 of 2
    np.testing.assert_allclose(model(TOKENS), other(TOKENS), atol=1e-5)
    assert np.abs(model(TOKENS) - build("normformer")(TOKENS)).max() > 1e-2


def test_normformer_without_its_extras_is_pre():
    model, pre = build("normformer"), build("pre")
    for block in model.blocks:
        block.attention.norm_out = block.mlp.branch.norm_inner = None
        block.attention.branch.head_scale = None
    assert np.array_equal(take(model, pre)(TOKENS), pre(TOKENS))


def test_lns_is_pre_with_smaller_gains():
    lns, pre = build("lns", layers=3), build("pre", layers=3)
    take(lns, pre)
    for layer, block in enumerate(pre.blocks, start=1):
        for part in (block.attention, block.mlp):
            part.norm_in.gain[...] /= np.sqrt(layer)
    np.testing.assert_allclose(lns(TOKENS), pre(TOKENS), atol=1e-5)
    x = pre.stem(TOKENS, Context())
    assert np.array_equal(lns.blocks[0](x, Context()), pre.blocks[0](x, Context()))


def test_mix_ln_ends_in_pre_and_post():
    for share, name in ((0.0, "pre"), (1.0, "post")):
        mix, other = build("mix-ln", where={"post_share": share}), build(name)
        assert np.array_equal(take(mix, other)(TOKENS), other(TOKENS)), name
    half = build("mix-ln", where={"post_share": 0.5})
    assert half.blocks[0].mlp.norm_skip is not None
    assert half.blocks[1].mlp.norm_skip is None
    assert half.norm_final is not None


def test_hybridnorm_does_not_see_the_size_of_q_k_v():
    for name in ("hybridnorm", "hybridnorm-star"):
        assert change(build(name, eps=0.0), 3.0, "query", "key", "value") < 1e-4, name
    assert change(build("pre", eps=0.0), 3.0, "query", "key", "value") > 1e-2


def test_in_hybridnorm_the_mlp_adds_to_a_normed_stream():
    block = build("hybridnorm", uneven=False).blocks[0]
    x = jnp.float32(np.random.default_rng(0).normal(0, 5, (2, 16, 32)))
    z = block.attention(x, Context())
    np.testing.assert_allclose(np.mean(np.square(z), -1), 1, rtol=1e-4)
    np.testing.assert_allclose(z, rms(x + block.attention.branch(x, Context())), atol=1e-5)
    np.testing.assert_allclose(
        block.mlp(z, Context()), z + block.mlp.branch(z, Context()), atol=1e-6
    )


def test_hybridnorm_star_differs_in_its_first_block():
    star, base = PlacementConfig("hybridnorm-star"), PlacementConfig("hybridnorm")
    assert star.wiring("attention", 0, 3).sites == {"norm_in", "norm_qk", "norm_v"}
    assert star.wiring("mlp", 0, 3).sites == {"norm_in"}
    for layer in (1, 2):
        for part in ("attention", "mlp"):
            assert star.wiring(part, layer, 3) == base.wiring(part, layer, 3)


def test_keel_without_branches_is_a_norm():
    part, x, y = sublayer("keel", eps=1e-12)
    assert part.alpha == 4  # sublayers of two blocks
    expected = rms(4 * x + part.branch(rms(x, 1e-12), Context()), 1e-12)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    np.testing.assert_allclose(np.mean(np.square(y), -1), 1, rtol=1e-5)
    part.branch.out.kernel[...] *= 0
    np.testing.assert_allclose(part(x, Context()), rms(x, 1e-12), atol=1e-5)


@pytest.mark.parametrize("name", placements)
def test_no_token_sees_a_later_one(name):
    where = {"post_share": 0.5} if name == "mix-ln" else {}
    model = build(name, where=where, width=8)

    def loss(x):
        context = Context()
        for block in model.blocks:
            x = block(x, context)
        return model.logits(context.norm(model.norm_final, x))[:, 5].sum()

    gradient = jax.grad(loss)(model.stem(TOKENS, Context()))
    assert np.abs(gradient[:, :6]).sum(-1).min() > 0, "each earlier token must matter"
    assert np.abs(gradient[:, 6:]).max() == 0, "no later token may"


@pytest.mark.system
@pytest.mark.parametrize("name", placements)
def test_every_row_trains(name):
    """Twenty steps of one length on one batch: finite throughout, and well below the start."""
    where = {"post_share": 0.5} if name == "mix-ln" else {}
    graphdef, params = nnx.split(build(name, uneven=False, where=where, width=8))

    def loss(params):
        logits = nnx.merge(graphdef, params)(TOKENS[:, :-1])
        return token_nll(logits, TOKENS[:, 1:]).mean()

    def step(params, _):
        value, gradient = jax.value_and_grad(loss)(params)
        size = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(gradient)))
        return jax.tree.map(lambda p, g: p - 0.3 * g / size, params, gradient), value

    run = jax.jit(lambda p: jax.lax.scan(step, p, None, 20)[1], compiler_options=QUICK)
    losses = np.asarray(run(params))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.system
@pytest.mark.parametrize("name", placements)
def test_gradients_against_float64_differences(name):
    """Of a whole model's loss, along random directions of length 1 in all parameters.

    A slope along one is about ‖g‖/√2000; a float32 gradient is good to far less than 1e-5 ‖g‖.
    """
    where = {"post_share": 0.5} if name == "mix-ln" else {}
    # Capped scores take a path of our own: jax.nn's attention has its softmax in float32 always.
    model = build(name, where=where, width=8, attention_softcap=50.0)
    graphdef, params = nnx.split(model)
    found = jax.jit(jax.grad(lambda p: nll(graphdef, p)), compiler_options=QUICK)(params)
    leaves = [np.float64(g) for g in jax.tree.leaves(found)]
    size = np.sqrt(sum((g**2).sum() for g in leaves))
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model.embed.dtype = jnp.float64
        graphdef = nnx.split(model)[0]
        loss = jax.jit(lambda p: nll(graphdef, p), compiler_options=QUICK)
        wide, tree = jax.tree.flatten(jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params))
        for _ in range(3):
            v = [rng.normal(size=g.shape) for g in leaves]
            length = np.sqrt(sum((part**2).sum() for part in v))
            values = [
                loss(
                    jax.tree.unflatten(
                        tree, [p + h * d / length for p, d in zip(wide, v, strict=True)]
                    )
                )
                for h in (1e-6, -1e-6)
            ]
            slope = float(values[0] - values[1]) / 2e-6
            along = sum((g * d).sum() for g, d in zip(leaves, v, strict=True)) / length
            assert abs(along - slope) < 1e-5 * size
            assert abs(slope) > 1e-4 * size


def nll(graphdef, params):
    """The loss of a model on some tokens."""
    return token_nll(nnx.merge(graphdef, params)(TOKENS[:, :-1]), TOKENS[:, 1:]).mean()
