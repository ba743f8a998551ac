"""How a pass is computed: bfloat16 where it says so and nowhere else, remat, attention kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.data import load_tokens
from normlab.loss import token_nll
from normlab.model import ComputeConfig, Context, attention
from normlab.norms import NormState, Site, norms
from normlab.runs.run import Run
from normlab.training.optimizers import make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.stacked import stacked
from normlab.training.step import learned, make_step
from normlab.training.trainer import Trainer, train
from tests.conftest import TINY, VOCAB, tiny_model
from tests.support.passes import QUICK, by_name
from tests.support.runs import tiny_config

FLOAT32 = ComputeConfig()
NARROW = ComputeConfig(dtype="bfloat16")
LOW = ComputeConfig(statistics="fp16:sequential")
REMAT = ComputeConfig(remat=True)
STEPS = 20
IDS = np.random.default_rng(0).integers(0, VOCAB, (4, 17)).astype(np.int32)
INPUTS, TARGETS = IDS[:, :-1], IDS[:, 1:]


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


SMALL = {"layers": 1, "gated": False}
VARIANTS = [{}, {"attention_softcap": 5.0}, {"tied": False, "bias": True, "positions": "learned"}]


def stepper(model, compute):
    """(a step of training, its arguments before the number of the step)."""
    graphdef, params = nnx.split(model)
    params = jax.tree.map(jnp.copy, params)  # a step donates its arguments
    optimizer = make_optimizer(AdamWConfig(warmup=1), STEPS, learned(params), model.stacked)
    step = make_step(graphdef, optimizer, 0, STEPS, compute)
    return step, (params, optimizer.init(learned(params)))


@functools.cache
def step_jaxpr(compute, variant=0):
    step, state = stepper(tiny_model(**SMALL, **VARIANTS[variant]), compute)
    return jax.make_jaxpr(step)(*state, np.int32(0), INPUTS, TARGETS).jaxpr


def trained(model, steps, compute):
    """Losses of a few steps on one batch."""
    step, state = stepper(model, compute)
    losses = []
    for i in range(steps):
        *state, metrics = step(*state, np.int32(i), INPUTS, TARGETS)
        losses.append(float(metrics["loss"]))
    return losses


@pytest.mark.parametrize("variant", range(3))
def test_every_product_of_a_bfloat16_step_is_bfloat16_and_all_else_float32(variant):
    """Attention's backward pass names the algorithm instead: bfloat16 operands, float32 sums."""
    jaxpr = step_jaxpr(NARROW, variant)
    products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) == 3 * (6 + 2 + 1)  # maps, attention, head: forward, and twice backward
    named = jax.lax.DotAlgorithmPreset.BF16_BF16_F32
    for equation in products:
        dtypes = {str(v.aval.dtype) for v in equation.invars}
        assert dtypes == {"bfloat16"} or equation.params["precision"] == named, equation
    for equation in equations(jaxpr):  # softmax and loss
        if equation.primitive.name in ("exp", "log", "tanh"):
            assert equation.outvars[0].aval.dtype == jnp.float32, equation
    after = {str(v.aval.dtype) for v in jaxpr.outvars}  # parameters, the optimizer's state, metrics
    assert after == {"float32", "int32"}


def test_a_float32_step_knows_no_bfloat16():
    for equation in equations(step_jaxpr(FLOAT32)):
        assert all(str(getattr(v.aval, "dtype", "")) != "bfloat16" for v in equation.outvars)


@pytest.mark.system
def test_a_bfloat16_step_learns():
    losses = trained(tiny_model(**SMALL), 12, NARROW)
    assert losses[-1] < losses[0] - 0.1


def gradients(model, computes, **context):
    """By name of a config: (loss, gradients by name, what the norms keep), all in one program."""
    graphdef, weights, kept = nnx.split(model, nnx.Param, NormState)

    def loss(weights, compute):
        model = nnx.merge(graphdef, weights, kept, copy=True)
        logits = model(INPUTS, Context(compute=compute, progress=jnp.float32(0), **context))
        return token_nll(logits, TARGETS).mean(), nnx.state(model, NormState)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(weights):
        both = jax.value_and_grad(loss, has_aux=True)
        return {name: both(weights, compute) for name, compute in computes.items()}

    return {
        name: (float(value), found, kept) for name, ((value, kept), found) in run(weights).items()
    }


@pytest.fixture(scope="module")
def each():
    """One model's gradients under each config."""
    return gradients(tiny_model(**SMALL), {"plain": FLOAT32, "narrow": NARROW, "low": LOW})


def assert_agree(wide, narrow):
    """A bfloat16 pass and a float32 one, which keeps 16 bits more."""
    assert narrow[0] == pytest.approx(wide[0], rel=2e-2)
    assert narrow[0] != wide[0]
    assert {str(g.dtype) for g in jax.tree.leaves(narrow[1])} == {"float32"}
    a, b = (np.concatenate([g.ravel() for g in by_name(x[1]).values()]) for x in (wide, narrow))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert cosine > 0.995  # bfloat16 keeps 8 bits; a wrong term would be far below


@pytest.mark.system
def test_gradients_in_bfloat16_agree_with_those_of_float32(each):
    assert_agree(each["plain"], each["narrow"])


@pytest.mark.system
def test_the_derivative_of_a_low_precision_statistic_is_that_of_the_float32_sum(each):
    exact, low = (by_name(each[name][1]) for name in ("plain", "low"))
    for name, g in exact.items():
        apart = np.linalg.norm(low[name] - g) / np.linalg.norm(g)
        assert 0 < apart < 2e-3, name  # what the forward pass moved, and no more
    assert each["low"][0] != each["plain"][0]


def test_only_a_step_with_remat_has_marks_of_what_is_kept():
    kinds = ("checkpoint", "remat2")
    plain, marked = (
        sum(e.primitive.name in kinds for e in equations(step_jaxpr(c))) for c in (FLOAT32, REMAT)
    )
    assert plain == 0
    assert marked >= 1


MODELS = [
    ("layernorm", "peri", {}),
    ("batchnorm", "post", {}),  # whose state is carried through
    ("dyt", "normformer", {}),
    ("rmsnorm", "hybridnorm", {}),
    ("rmsnorm", "pre", {"dropout": 0.3}),
]


@pytest.mark.system
@pytest.mark.parametrize(("norm", "placement", "fields"), MODELS)
def test_gradients_in_bfloat16_agree_and_remat_changes_none(norm, placement, fields):
    both = dataclasses.replace(NARROW, statistics="fp16:sequential")
    configs = {"plain": FLOAT32, "narrow": NARROW, "remat": REMAT, "both": both}
    key = {"dropout_key": jax.random.key(1)} if fields else {}
    found = gradients(tiny_model(norm, placement, layers=1, **fields), configs, **key)
    assert_agree(found["plain"], found["narrow"])
    for x, y in zip(*map(jax.tree.leaves, (found["plain"], found["remat"])), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    assert (found["both"][0] != found["narrow"][0]) == norms[norm].has_statistic


def test_a_norm_sees_float32_rows_and_leaves_bfloat16_ones_as_they_came():
    seen = []

    class Spy(type(tiny_model().norm_final)):
        def __call__(self, x, context):
            seen.append(x.dtype)
            return super().__call__(x, context)

    norm = tiny_model().norm_final
    norm.__class__ = Spy
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 32)), jnp.bfloat16)
    y = Context(compute=NARROW).norm(norm, x)
    assert seen == [jnp.float32]
    assert y.dtype == jnp.bfloat16
    exact = Context().norm(norm, x.astype(jnp.float32))
    assert np.array_equal(y, exact.astype(jnp.bfloat16))


def wide(**fields):
    """A model some of whose rows have a sum of squares beyond half precision, and some not."""
    model = tiny_model(**fields)
    model.embed.embedding[...] = 450 * np.asarray(model.embed.embedding[...])
    return model


@pytest.mark.system
def test_a_step_has_its_statistics_in_the_precision_asked_for():
    model, context = wide(layers=1), Context(LOW.precision, observe=True)
    low = float(token_nll(model(INPUTS, context), TARGETS).mean())
    lost = sum(int(o.overflowed.sum()) for o in context.observed.values())
    assert 0 < lost < INPUTS.size * 3, "some rows, not all"
    first, plain = (trained(model, 1, compute)[0] for compute in (LOW, FLOAT32))
    assert first == pytest.approx(low, rel=1e-5)
    assert abs(first - plain) > 1e-2


@pytest.mark.system
def test_a_stack_has_its_statistics_in_the_precision_asked_for_too():
    configs = {"plain": FLOAT32, "low": LOW, "remat": dataclasses.replace(LOW, remat=True)}
    alone, whole = (gradients(model, configs) for model in (wide(), stacked(wide())))
    for name in configs:
        assert whole[name][0] == pytest.approx(alone[name][0], rel=1e-6), name
    assert abs(whole["low"][0] - whole["plain"][0]) > 1e-5


@pytest.mark.system
def test_a_run_validates_and_is_watched_in_the_precision_it_trains_in(tmp_path):
    fields = {
        "model": TINY | {"init_std": 40.0},
        "steps": 3,
        "eval_every": 3,
        "diagnostics_every": 3,
    }
    low, plain = (
        train(tiny_config(tmp_path, **fields, compute={"statistics": said})).diagnostics[0]
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


def test_a_pass_that_looks_inside_may_ask_for_remat(tokens):
    """It has no way back, and is the same program."""

    def traced(compute):
        def run():
            context = Context(observe=True, capture=True, compute=compute)
            return tiny_model()(tokens, context), context.inputs

        return str(jax.make_jaxpr(run)())

    assert traced(REMAT) == traced(FLOAT32)


def test_the_library_of_products_is_told_to_the_compiler_only_if_asked():
    assert not FLOAT32.compiler_options()
    asked = ComputeConfig(products="onednn").compiler_options()
    assert asked["xla_cpu_use_onednn"] is True


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache entry")
def test_the_library_of_products_trains_alike():
    """With jax 0.12 no later process finds it compiled, and jax warns; the commands do not."""
    model, asked = tiny_model(**SMALL), ComputeConfig(products="onednn")
    np.testing.assert_allclose(trained(model, 2, asked), trained(model, 2, FLOAT32), rtol=1e-5)


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


def traced(compute, tokens):
    """A pass of which only shapes are known."""
    return jax.eval_shape(lambda: tiny_model()(tokens, Context(compute=compute)))


def test_attention_gets_the_kernel_that_was_chosen(monkeypatch, tokens):
    """A library's for what it can do, and ours for float32: another precision of the products."""
    got = []

    def spy(q, k, v, **options):
        got.append((str(q.dtype), options.pop("implementation")))
        return jnp.zeros_like(q)

    monkeypatch.setattr(attention.jax.nn, "dot_product_attention", spy)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    traced(NARROW, tokens)
    traced(FLOAT32, tokens)
    assert got == [("bfloat16", "cudnn")] * 2


def test_a_kernel_that_cant_be_had_is_refused(tokens):
    with pytest.raises(ValueError, match="expected a GPU .* got cpu and 16; take compute.attent"):
        traced(ComputeConfig(dtype="bfloat16", attention="cudnn"), tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "cudnn"}, "compute.attention=cudnn computes in half precision"),
        ({"dtype": "bf16"}, "unknown compute.dtype 'bf16'"),
        ({"products": "mkl"}, "unknown compute.products 'mkl'"),
        ({"statistics": "fp61"}, "format 'fp61'.*'fp64'"),
        ({"statistics": "fp16+slanc"}, "fp16.slanc: expected a precision without a scale rule"),
        (
            {"statistics": "iron-bf16"},
            "statistics=iron-bf16: expected a precision, such as .*datapath",
        ),
        ({"attention": "flash"}, "unknown compute.attention 'flash'"),
    ],
)
def test_what_there_is_not_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ComputeConfig(**fields)


def test_rows_of_another_shape_are_refused_by_the_norms_name():
    kind = norms["rmsnorm"]

    class Short(kind):
        def __call__(self, x, context):
            return x.sum(-1)

    norm = Short(8, Site("norm_in", "here"), kind.Config())
    message = r"norm 'rmsnorm' at here returned rows of shape \(2, 3\): expected \(2, 3, 8\)"
    with pytest.raises(ValueError, match=message):
        Context().norm(norm, np.zeros((2, 3, 8), np.float32))
