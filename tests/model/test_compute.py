"""How a pass is computed: bfloat16 where it says so and nowhere else, remat, attention kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.checkpoint import to_names
from normlab.data import load_tokens
from normlab.loss import token_nll
from normlab.model import ComputeConfig, Context, attention
from normlab.numerics import Precision
from normlab.run import Run
from tests.conftest import TINY, tiny_model
from tests.support.runs import tiny_config
from tests.training.test_step import gradients, small, texts, trained
from train.loop import Trainer, train
from train.optimizer import OptimizerConfig, make_optimizer
from train.stacked import stacked
from train.step import make_step

NARROW = ComputeConfig(dtype="bfloat16")


def equations(jaxpr):
    """All equations, those of inner jaxprs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
        ):
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr)
            elif hasattr(value, "eqns"):
                yield from equations(value)


VARIANTS = [{}, {"attention_softcap": 5.0}, {"tied": False, "bias": True, "positions": "learned"}]


@functools.cache
def step_jaxpr(compute, variant=0):
    model = small(**VARIANTS[variant])
    graphdef, params = nnx.split(model)
    weights = nnx.filter_state(params, nnx.Param)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, weights)
    step = make_step(graphdef, optimizer, 0, 10, compute)
    return jax.make_jaxpr(step)(params, optimizer.init(weights), np.int32(0), *texts(0)).jaxpr


@pytest.mark.parametrize("variant", range(3))
def test_every_product_of_a_bfloat16_step_is_bfloat16(variant):
    """Attention's backward pass names the algorithm instead: bfloat16 operands, float32 sums."""
    found = [e for e in equations(step_jaxpr(NARROW, variant)) if e.primitive.name == "dot_general"]
    assert len(found) == 3 * (6 + 2 + 1)  # maps, attention, head: forward, and twice backward
    named = jax.lax.DotAlgorithmPreset.BF16_BF16_F32
    for equation in found:
        dtypes = {str(v.aval.dtype) for v in equation.invars}
        assert dtypes == {"bfloat16"} or equation.params["precision"] == named, equation


def test_a_float32_step_knows_no_bfloat16():
    for equation in equations(step_jaxpr(ComputeConfig())):
        assert all(str(getattr(v.aval, "dtype", "")) != "bfloat16" for v in equation.outvars)


def test_softmax_and_loss_are_float32_in_a_bfloat16_step():
    for variant in range(3):
        for equation in equations(step_jaxpr(NARROW, variant)):
            if equation.primitive.name in ("exp", "log", "tanh"):
                assert equation.outvars[0].aval.dtype == jnp.float32, equation


def test_parameters_state_and_gradients_stay_float32_and_it_learns():
    params, losses = trained(small(), steps=12, compute=NARROW, batch=lambda _: texts(0))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found = jax.eval_shape(lambda: gradients(small(), NARROW)[1])
    assert {g.dtype for g in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert losses[-1] < losses[0]


MODELS = [
    ("rmsnorm", "pre"),
    ("layernorm", "peri"),
    pytest.param("batchnorm", "post", marks=pytest.mark.system),
    pytest.param("dyt", "normformer", marks=pytest.mark.system),
    pytest.param("rmsnorm", "hybridnorm", marks=pytest.mark.system),
]


@pytest.mark.parametrize(("norm", "placement"), MODELS)
def test_gradients_agree_with_those_of_float32(norm, placement):
    model = tiny_model(norm, placement)
    (value, wide, _), (low, narrow, _) = (gradients(model, c) for c in (None, NARROW))
    assert low == pytest.approx(float(value), rel=2e-2)
    assert low != value
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (wide, narrow)]
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    assert cosine > 0.995  # bfloat16 keeps 8 bits; a wrong term would be far below


def test_a_norm_sees_float32_rows_and_leaves_bfloat16_ones_as_they_came():
    seen = []

    class Spy(type(tiny_model("rmsnorm").blocks[0].mlp.norm_in)):
        def __call__(self, x, acc):
            seen.append(x.dtype)
            return super().__call__(x, acc)

    norm = tiny_model("rmsnorm").norm_final
    norm.__class__ = Spy
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 32)), jnp.bfloat16)
    y = Context(compute=NARROW).norm(norm, x)
    assert seen == [jnp.float32]
    assert y.dtype == jnp.bfloat16
    exact = Context().norm(norm, x.astype(jnp.float32))
    assert np.array_equal(y, exact.astype(jnp.bfloat16))


def test_the_precision_of_a_statistic_is_chosen_beside_it(tokens):
    model = tiny_model(init_std=8.0)
    exact = model(tokens, Context(compute=NARROW))
    low = model(tokens, Context(Precision.parse("fp16:sequential"), compute=NARROW))
    assert low.dtype == exact.dtype == jnp.float32
    assert np.abs(low - exact).max() > 0


LOW = ComputeConfig(statistics="fp16:sequential")


@functools.cache
def wide():
    """A model some of whose rows have a sum of squares beyond half precision, and some not."""
    return tiny_model(layers=1, init_std=40.0)


@pytest.mark.system
def test_a_step_has_its_statistics_in_the_precision_asked_for():
    inputs, targets = texts(0)
    context = Context(LOW.precision, observe=True)
    low = token_nll(wide()(inputs, context), targets).mean()
    lost = sum(int(o.overflowed.sum()) for o in context.observed.values())
    assert 0 < lost < inputs.size * 3, "some rows, not all"
    ((first, *_), (plain, *_)) = (trained(wide(), 1, compute)[1] for compute in (LOW, None))
    assert first == pytest.approx(float(low), rel=1e-5)
    assert abs(first - plain) > 1e-2


def test_the_derivative_of_a_low_precision_statistic_is_that_of_the_float32_sum():
    exact, low = (gradients(small(), c)[1] for c in (None, LOW))
    for name, g in to_names(exact).items():
        apart = np.linalg.norm(to_names(low)[name] - g) / np.linalg.norm(g)
        assert 0 < apart < 2e-3, name  # what the forward pass moved, and no more


@pytest.mark.system
@pytest.mark.parametrize("remat", [False, True])
def test_a_stack_has_its_statistics_in_the_precision_asked_for_too(remat):
    asked = dataclasses.replace(LOW, remat=remat)
    model = tiny_model(init_std=4.0)
    ((alone, _, _), (whole, _, _)) = (gradients(m, asked) for m in (model, stacked(model)))
    assert whole == pytest.approx(float(alone), rel=1e-6)
    assert abs(whole - gradients(model)[0]) > 1e-5


@pytest.mark.system
def test_a_run_validates_and_is_watched_in_the_precision_it_trains_in(tmp_path):
    fields = {"model": TINY | {"init_std": 40.0}, "steps": 3, "eval_every": 3, "watch_every": 3}
    low, plain = (
        train(tiny_config(tmp_path, **fields, compute={"statistics": said})).watched[0]
        for said in ("fp16:sequential", "fp32")
    )
    first, final = "blocks.0.attention.norm_in", "norm_final"
    assert low["sites"][first] == plain["sites"][first]  # nothing has been summed before it
    assert low["sites"][final] != plain["sites"][final]
    runs = [Run(path) for path in tmp_path.iterdir()]
    assert len({run.metrics[0]["valid_loss"] for run in runs}) == 2
    (run,) = (r for r in runs if r.read("config.yaml")["compute"]["statistics"] != "fp32")
    tokens = load_tokens(tiny_config(tmp_path).data)
    trainer = Trainer(tiny_config(tmp_path, **fields), tokens, run)
    model = nnx.merge(trainer.layers.graphdef, trainer.params)
    losses = token_nll(model(trainer.valid[0], Context(LOW.precision)), trainer.valid[1])
    assert run.metrics[0]["valid_loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("norm", "dropout"),
    [("rmsnorm", 0.3), pytest.param("batchnorm", 0.0, marks=pytest.mark.system)],
)
def test_remat_changes_what_is_kept_and_nothing_else(norm, dropout):
    model, key = tiny_model(norm, dropout=dropout), jax.random.key(1)
    remat = ComputeConfig(remat=True)
    plain, again = (gradients(model, c, dropout_key=key) for c in (None, remat))
    for a, b in zip(*map(jax.tree.leaves, (plain, again)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    marks = [
        sum(e.primitive.name in ("checkpoint", "remat2") for e in equations(step_jaxpr(c)))
        for c in (ComputeConfig(), remat)
    ]
    assert marks[0] == 0
    assert marks[1] >= 1


@pytest.mark.system
def test_a_pass_that_looks_inside_may_ask_for_remat(tokens):
    context = Context(observe=True, capture=True, compute=ComputeConfig(remat=True))
    plain = Context(observe=True, capture=True)
    assert np.array_equal(tiny_model()(tokens, context), tiny_model()(tokens, plain))
    assert context.inputs.keys() == plain.inputs.keys() != set()


@pytest.mark.system
def test_the_library_of_products_is_told_to_the_compiler_only_if_asked():
    assert not ComputeConfig().compiler_options()
    asked = ComputeConfig(products="onednn")
    assert asked.compiler_options()["xla_cpu_use_onednn"] is True
    _, losses = trained(small(), steps=2)
    _, again = trained(small(), steps=2, compute=asked)
    np.testing.assert_allclose(again, losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("asked", "backend", "dtype", "size", "kernel"),
    [
        ("auto", "cpu", "bfloat16", 64, "xla"),
        ("auto", "gpu", "bfloat16", 64, "cudnn"),
        ("auto", "gpu", "float16", 128, "cudnn"),
        ("auto", "gpu", "float32", 64, "xla"),
        ("auto", "gpu", "float64", 64, "xla"),
        ("auto", "gpu", "bfloat16", 256, "xla"),
        ("auto", "gpu", "bfloat16", 60, "xla"),
        ("auto", "tpu", "bfloat16", 64, "xla"),
        ("xla", "gpu", "bfloat16", 64, "xla"),
        ("cudnn", "gpu", "bfloat16", 64, "cudnn"),
    ],
)
def test_the_attention_kernel_by_device(monkeypatch, asked, backend, dtype, size, kernel):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    compute = ComputeConfig(dtype="bfloat16", attention=asked)
    assert compute.attention_kernel(jnp.dtype(dtype), size) == kernel


def test_attention_gets_the_kernel_that_was_chosen(monkeypatch, tokens):
    got = []

    def spy(q, k, v, **options):
        got.append((str(q.dtype), options.pop("implementation")))
        return jnp.zeros_like(q)

    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", spy)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    tiny_model()(tokens, Context(compute=NARROW))
    tiny_model()(tokens, Context())
    assert got == [("bfloat16", "cudnn")] * 2 + [("float32", "xla")] * 2


def test_a_kernel_that_cant_be_had_is_refused(tokens):
    with pytest.raises(ValueError, match="expected a GPU .* got cpu and 16; take compute.attent"):
        tiny_model()(tokens, Context(compute=ComputeConfig(dtype="bfloat16", attention="cudnn")))
    with pytest.raises(ValueError, match="compute.attention=cudnn computes in half precision"):
        ComputeConfig(attention="cudnn")
    with pytest.raises(ValueError, match="unknown compute.dtype 'bf16'"):
        ComputeConfig(dtype="bf16")
    with pytest.raises(ValueError, match="unknown compute.products 'mkl'"):
        ComputeConfig(products="mkl")
    with pytest.raises(ValueError, match="format 'fp61'.*'fp16'"):
        ComputeConfig(statistics="fp61")
    with pytest.raises(ValueError, match="fp16.slanc: expected a precision without a scale rule"):
        ComputeConfig(statistics="fp16+slanc")
    with pytest.raises(ValueError, match="unknown compute.attention 'flash'"):
        ComputeConfig(attention="flash")
