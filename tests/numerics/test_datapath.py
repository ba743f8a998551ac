"""Datapaths: every stage of a norm unit against loops in NumPy, bit for bit."""

import dataclasses
import importlib
from functools import partial

import jax
import numpy as np
import pytest

from normlab.config import build
from normlab.numerics import (
    Accumulator,
    Datapath,
    Mean,
    RangeRecorder,
    Root,
    arithmetic,
    datapaths,
    presets,
)
from normlab.numerics.output import Output
from normlab.registry import UnknownNameError
from normlab.results.column import Column
from tests.support import datapath_reference as reference
from tests.support.numerics_reference import extreme_rows, same

D = 48
ROOTS = {
    "sqrt": Root("sqrt"),
    "sqrt in bf16": Root("sqrt", "bf16"),
    "divide in fp16": Root("divide", "fp16"),
    "table": Root("table", entries=64),
    "table in fp16, Newton": Root("table", "fp16", 64, newton=1),
    "line": Root("table", "bf16", 32, interpolate=True),
    "magic": Root("magic", newton=2),
}
STAGES = {
    "input": {"input": "bf16"},
    "square": {"square": "fp16"},
    "tree": {"sum": "fp16:lanes4", "tree": "fp32"},
    "float64 tree": {"sum": "fp32:lanes4", "tree": "fp64"},
    "explicit tree": {"sum": "fp16:tree_0_2_a_1_3_a_a"},
    "float64": {"sum": "fp64:sequential"},
    "float64 mean": {"sum": "fp64:lanes4", "mean": Mean("divide", "fp64")},
    "float64 mean, a product": {"sum": "fp64", "mean": Mean("reciprocal", "fp64")},
    "lanes": {"sum": "fp16:lanes16"},
    "divided": {"mean": Mean("divide", "fp16")},
    "reciprocal": {"mean": Mean("reciprocal", "bf16")},
    "eps": {"eps": "fp16"},
    "product": {"product": "bf16"},
    "cut off": {"product": "bf16.truncate", "output": "fp16.truncate"},
    "weight": {"weight": "bf16"},
    "mirrored": {"sum": "fp16:lanes16", "mirrored": True},
    "row moments": {"variance": "welford8x2", "fused": True},
    "row moments in lanes": {"variance": "welford4", "product": "fp16"},
    "stored": {"stored": "bf16"},
    "one plus": {"stored": "bf16", "one_plus": "fp16"},
    "bias": {"bias": "fp16"},
    "output": {"output": "fp16"},
    "cast first": {"output": "bf16", "weight": "bf16", "cast_first": True},
    "int8 by row": {"output": "int8.row"},
    "int8 by tensor": {"output": "int8.tensor"},
    "fp8 by block": {"output": "fp8_e4m3.block16"},
}
ALONE = STAGES | {name: {"root": root} for name, root in ROOTS.items()}


def rows(d=D):
    """Rows of many sizes; zeros, subnormal and overflowing sums, constant rows."""
    x = extreme_rows(0, d, 2.0)
    edges = np.outer([0, 1e-20, 1e-4, 3e4, 1.5, 1e-8], np.ones(d))
    return np.concatenate([x, np.float32(edges)])


WEIGHT = np.float32(np.random.default_rng(1).normal(1, 0.5, D))
BIAS = np.float32(np.random.default_rng(2).normal(0, 0.5, D))


def paths(center=False):
    """Each stage alone, and every preset; a sum in XLA's own order is given a written one."""
    base = {"sum": "fp32:sequential", "root": Root("sqrt")}
    given = {name: Datapath(**base | said) for name, said in ALONE.items()}
    given |= {name: datapaths[name] for name in datapaths}
    return {
        name: dataclasses.replace(path, sum="fp32:lanes8") if path.sum == "fp32" else path
        for name, path in given.items()
        if center or path.variance is None
    }


def normed(path, x, weight=WEIGHT, bias=BIAS, scale=1.0, eps=1e-5, center=False):
    """As a norm calls it."""
    acc = Accumulator(path, scale)
    y = acc.normalize(x, eps, center=center)
    if acc.datapath.makes_gamma:
        weight = acc.gamma(weight, acc.datapath.one_plus is not None)
    return acc.affine(y, weight, bias, np.float32)


def compare(made, x, **more):
    """Each path's rows with those of the loops."""
    for (name, path), y in zip(paths(more.get("center")).items(), made, strict=True):
        wrong = ~same(y, reference.unit(x, path, WEIGHT[: x.shape[1]], BIAS[: x.shape[1]], **more))
        assert not wrong.any(), (name, sorted(set(np.argwhere(wrong)[:, 0])))


def test_every_stage_alone_and_every_preset_against_loops():
    """One program for all; 1/3.7 is no float32."""
    x = rows()
    compare(jax.jit(lambda x: [normed(p, x, scale=3.7) for p in paths().values()])(x), x, scale=3.7)


@pytest.mark.system
def test_a_mean_goes_through_the_same_stages():
    x = rows() + np.float32(0.5)
    made = jax.jit(lambda x: [normed(p, x, center=True) for p in paths(True).values()])(x)
    compare(made, x, center=True)


@pytest.mark.system
def test_stages_without_jit():
    compare([normed(p, rows()) for p in paths().values()], rows())


@pytest.mark.extended
@pytest.mark.parametrize("d", [1, 5, 576, 4096])
def test_stages_at_other_widths(d):
    x = rows(d)
    weight, bias = np.ones(d, np.float32), np.zeros(d, np.float32)
    for name, path in paths().items():
        if d % 16 and "block" in (path.output or ""):
            continue
        y = jax.jit(partial(normed, path))(x, weight, bias)  # a constant bias of 0: XLA drops it
        assert same(y, reference.unit(x, path, weight, bias)).all(), name


def test_a_sum_alone_is_its_precision():
    x = rows()
    texts = ("fp32", "fp16", "fp16.input:lanes8", "bf16:blocks16")
    both = lambda x: [[normed(p, x) for p in (t, Datapath(sum=t))] for t in texts]  # noqa: E731
    for text, (one, other) in zip(texts, jax.jit(both)(x), strict=True):
        assert same(one, other).all(), text


def test_a_columns_name_may_be_a_datapaths():
    column = Column.parse("simd16-table64+random_tokens.pow2")
    assert (str(column), column.rule) == ("simd16-table64+random_tokens.pow2", "random_tokens")
    assert column.precision.format.name == "fp16"
    with pytest.raises(UnknownNameError, match="datapath 'simd16-table'. Did you mean 'simd16-t"):
        arithmetic("simd16-table")
    assert all(datapaths[name].source for name in datapaths)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"inputs": "fp16"}, "unknown key of the config 'inputs'. Did you mean 'input'"),
        ({"product": "fp17"}, "unknown float format 'fp17'. Did you mean 'fp16'"),
        ({"output": "int8"}, "unknown output 'int8'. Did you mean 'int8.row'"),
        ({"root": {"kind": "tables"}}, "unknown kind of root 'tables'. Did you mean 'table'"),
        ({"root": {"kind": "sqrt", "newton": 1}}, "root.newton = 1: expected 0 for kind 'sqrt'"),
        ({"root": {"kind": "table", "entries": 10}}, "root.entries = 10: expected a power of two"),
        ({"root": {"interpolate": True}}, "root.interpolate = True: expected kind 'table', not"),
        ({"output": "int8.block0"}, "unknown output 'int8.block0'. Did you mean 'int8.blockN'"),
        ({"output": "fp8_e4m3.rows"}, "unknown output .* Did you mean 'fp8_e4m3.row'"),
        ({"eps": "fp64"}, "fp64: expected a format that float32 holds; fp64 is of `sum` only"),
        ({"mean": {"format": "fp64"}}, "mean.format = 'fp64' beside sum = 'fp32': expected a sum"),
        ({"sum": "fp64.flush"}, "fp64.flush: expected fp64, which takes no options"),
        ({"sum": "fp64:blocks4"}, "expected fp64 with no option but input, in one of the orders"),
        ({"sum": "fp16:tree_0_2_a"}, "order tree_0_2_a: expected a tree in postfix"),
        ({"variance": "welford"}, "variance = 'welford': expected welfordK or welfordKx2"),
        ({"fused": True}, "fused = True: expected a variance beside it"),
        ({"cast_first": True}, "cast_first = True: expected an output beside it"),
        ({"sum": "fp16", "tree": "fp32"}, "tree = 'fp32' beside the order pairwise: expected"),
    ],
)
def test_a_stage_that_cannot_be_read_is_named(said, message):
    with pytest.raises(ValueError, match=message):
        build(Datapath, said)


@pytest.mark.parametrize("name", ["fp16", "my_unit", "my.unit-2", "my-unit+2", "", "hf-olmo2-fp16"])
def test_a_name_can_be_no_precisions_and_is_given_once(name):
    with pytest.raises(
        ValueError, match="expected a name of words joined by|is registered already"
    ):
        datapaths.add(Datapath(name=name))
    with pytest.raises(TypeError, match="root = 'table': expected root.FIELD"):
        datapaths.add(Datapath(name="my-unit", root="table"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs: fp16", "unknown key of the config 'inputs'. Did you mean 'input'"),
        ("input: [fp16", "expected ',' or"),
        ("", "None: expected fields of a datapath"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, text, message):
    """A precision needs none of them."""
    (tmp_path / "my-unit.yaml").write_text(text)
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    monkeypatch.setattr(presets, "datapaths", fresh := presets.Datapaths("datapath"))
    with pytest.raises(ValueError, match=f"(?s)my-unit.yaml: .*{message}"):
        list(fresh)
    with pytest.raises(ValueError, match="my-unit.yaml"):
        arithmetic("my-other-unit")
    assert str(arithmetic("fp16")) == "fp16"


def test_a_root_at_the_borders_of_cells_and_below_normal_numbers():
    """A subnormal number is a 0, as XLA takes it on a CPU, with and without jit."""
    borders = np.float32(np.outer([1, 2], 1 + np.arange(32) / 32).ravel())
    near = [np.nextafter(borders, np.float32(way)) for way in (0, np.inf)]
    edges = np.float32([0, 1e-45, 1e-39, 2.0**-120, 1e37, np.inf, np.nan, -1])
    v = np.concatenate([borders, *near, edges])[:, None]
    normal = np.where(np.abs(v) < np.finfo(np.float32).tiny, np.float32(0), v)
    roots = [root for root in ROOTS.values() if root.kind in ("table", "magic")]
    found = jax.jit(lambda v: [root.inverse(v) for root in roots])(v)
    for root, one in zip([*roots, roots[0]], [*found, roots[0].inverse(v)], strict=True):
        assert same(one, reference.root(normal, root)).all(), root


def test_eight_bits_of_what_is_tiny_or_not_finite():
    """One NaN makes NaN of its part; zeros beside what no scale can hold stay zeros."""
    y = np.float32([[1, -2, 0, np.nan], [3, 4, 5, 6], [0, 1e-37, 0, 0], [np.inf, 0, 1, 2]])
    row, tensor = (np.asarray(Output(f"int8.{part}")(y)) for part in ("row", "tensor"))
    assert np.isnan(row).all(-1).tolist() == [True, False, False, True]
    assert (row[2] == 0).all()
    assert np.isnan(tensor).all()


def test_a_wider_tree_has_its_own_range():
    """Four lanes of 40,000 each fit fp16, as does their sum float32."""
    x = np.full((3, 40), 63.2, np.float32)

    def lost(tree):
        recorder = RangeRecorder(Datapath(sum="fp16.saturate:lanes4", tree=tree))
        recorder.normalize(x, 1e-5)
        return recorder.counts().overflowed

    assert jax.jit(lambda: [lost(tree) for tree in ("fp32", "fp16.saturate", None)])() == [0, 3, 3]


def test_derivatives_are_those_of_float32():
    """Within the error of the values; the steps of tables, of bits and of codes have no slope."""
    x, t = rows()[:8], np.float32(np.random.default_rng(3).normal(size=(8, D)))

    def slope(path):
        return jax.grad(lambda x: (t * normed(path, x)).sum())(x)

    rough = (
        Datapath(output="int8.row"),
        Datapath(root=Root("table")),
        Datapath(root=Root("magic")),
    )
    exact, *found = jax.jit(lambda: [slope(p) for p in ("fp32", *rough)])()
    for path, one in zip(rough, found, strict=True):
        assert np.linalg.norm(one - exact) < 0.06 * np.linalg.norm(exact), path


@pytest.mark.extended
@pytest.mark.parametrize("d", [5, 100, 576, 4096])
@pytest.mark.parametrize("form", ["bf16", "fp16"])
def test_pytorchs_norms_bit_for_bit(form, d):
    """On a CPU of x86, with AVX2 or AVX-512; elsewhere the sum's order is another."""
    torch = pytest.importorskip("torch")
    kind, norm = {"bf16": torch.bfloat16, "fp16": torch.float16}[form], torch.nn.functional
    x, weight, bias = (torch.from_numpy(part).to(kind) for part in torch_rows(d))
    row = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    wanted = {
        f"hf-llama-{form}": weight * row.to(kind),
        f"hf-olmo2-{form}": norm.rms_norm(x, (d,), weight, 1e-6),
        f"hf-gemma3-{form}": (row * weight.float()).to(kind),
    }
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        wanted[f"torch-layernorm-{form}"] = norm.layer_norm(x, (d,), weight, bias, 1e-6)
    x, weight, bias = (part.float().numpy() for part in (x, weight, bias))
    for name, want in wanted.items():
        beta = bias if "layernorm" in name else None
        run = jax.jit(lambda x, w, b, n=name: normed(n, x, w, b, eps=1e-6, center=b is not None))
        assert same(run(x, weight, beta), want.float().numpy()).all(), name


@pytest.mark.extended
@pytest.mark.parametrize("form", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("preset", "module", "kind"),
    [
        ("llama", "llama.modeling_llama", "LlamaRMSNorm"),
        ("llama", "qwen2.modeling_qwen2", "Qwen2RMSNorm"),
        ("llama", "qwen3.modeling_qwen3", "Qwen3RMSNorm"),
        ("llama", "t5.modeling_t5", "T5LayerNorm"),
        ("gemma3", "gemma3.modeling_gemma3", "Gemma3RMSNorm"),
        ("olmo2", "olmo2.modeling_olmo2", "Olmo2RMSNorm"),
    ],
)
def test_norms_of_transformers_bit_for_bit(preset, module, kind, form):
    """Their modules after `.to(form)`, on a CPU of x86."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[form]
    norm = getattr(importlib.import_module(f"transformers.models.{module}"), kind)(576, eps=1e-6)
    x, weight, _ = torch_rows(576)
    norm.weight.data = torch.from_numpy(weight - np.float32(preset == "gemma3"))
    norm = norm.to(dtype)
    rows = torch.from_numpy(x).to(dtype)
    with torch.no_grad():
        want = norm(rows).float().numpy()
    acc = Accumulator(f"hf-{preset}-{form}")

    @jax.jit
    def run(x, w):
        gamma = acc.gamma(w, preset == "gemma3")
        return acc.affine(acc.normalize(x, 1e-6), gamma, None, np.float32)

    stored = norm.weight.detach().float().numpy()
    assert same(run(rows.float().numpy(), stored), want).all()


def torch_rows(d):
    """Rows of three sizes, a weight and a bias."""
    rng = np.random.default_rng(d)
    x = rng.normal(0.2, 1, (300, d)) * rng.choice([1e-3, 1, 30], (300, 1))
    return np.float32(x), np.float32(rng.normal(1, 0.3, d)), np.float32(rng.normal(0, 0.3, d))
