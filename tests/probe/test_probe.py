"""The probe: planted datapaths are found, and what is no datapath of ours is never called exact."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from normlab.numerics import Datapath, Mean, Precision, Root, exact
from normlab.numerics.eps import EpsForm
from normlab.numerics.output import Output
from normlab.probe import probe
from normlab.probe.adapters import load
from normlab.probe.explain import Arithmetic
from normlab.probe.interval import inside, interval
from normlab.probe.kernel import Kernel
from normlab.probe.merges import described, fma
from normlab.probe.observe import outputs, same
from normlab.probe.report import report
from normlab.probe.rows import Design
from normlab.probe.search import Search
from normlab.probe.stages import (
    FUSED,
    JOINED,
    WRITTEN,
    Front,
    Sum,
    Tail,
    alike,
    leaving,
    scalars,
    sums,
    wide_sum,
    wide_sums,
)
from normlab.probe.tree import learned
from tests.support import datapath_reference as reference
from tests.support.numerics_reference import summed
from tests.support.planted_kernels import Planted, eight_bits, planted

D = 48
PLANTED = 60


def double(x, weight, eps):
    """RMSNorm in float64, rounded once: no datapath of ours."""
    wide = np.float64(x)
    y = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * np.float64(weight)
    return y.astype(np.float32)


def test_rows_of_one_and_two_elements_have_one_sum_in_every_order():
    """Beside elements that are read from, too: in the format of the adder, by the loops of none."""
    design = Design(D, np.random.default_rng(0))
    x = np.float32(design.read(design.spikes(16, -3, 7)))
    assert ((x != 0).sum(-1) > D // 2).all()
    of_each = [s.statistic(x, None, Mean(), False)[1] for s in [*sums("fp32", [None], D)][::5]]
    assert all(same(one, other).all() for one, other in combinations(of_each, 2))


def test_the_interval_encloses_what_made_the_row():
    """And no more: at either end the next number makes another row."""
    rng = np.random.default_rng(1)
    x, weight = np.float32(rng.normal(size=(2, 8, D)))
    number = np.float32(rng.uniform(0.1, 10, (8, 1)))
    tail = Tail("fp16", None, False, "bf16")
    for divides in (False, True):
        y = np.asarray(leaving(x, number, weight, tail, divides))
        low, high = interval(x, weight, y, tail, divides)
        assert ((low <= number[:, 0]) & (number[:, 0] <= high)).all()
        for end, way in ((low, -np.inf), (high, np.inf)):
            same_end = np.asarray(leaving(x, end[:, None], weight, tail, divides)) == y
            beyond = np.nextafter(end, np.float32(way))[:, None]
            assert same_end.all()
            assert (np.asarray(leaving(x, beyond, weight, tail, divides)) != y).any(-1).all()


def test_a_row_that_is_no_number_allows_every_number():
    """A Newton step that overflows makes −∞ of 1/rms."""
    x, y = np.ones((4, D), np.float32), np.full((4, D), np.nan, np.float32)
    limits = interval(x, x, y, Tail(None, None, False, None), False)
    assert inside(np.float32([-np.inf, np.nan, 1, np.inf]), limits).all()


def test_tails_that_are_searched_as_one_make_the_same_rows():
    rng = np.random.default_rng(2)
    x = np.float32(rng.normal(size=(8, D)))
    weight = np.float32(np.float16(rng.normal(size=(8, D))))
    number = np.float32(rng.uniform(0.1, 10, (8, 1)))
    groups = [group for group in alike(["fp16"], "fp16") if len(group) > 1]
    assert groups
    for group in groups[:3]:
        made = [np.asarray(leaving(x, number, weight, tail, False)) for tail in group]
        assert all(same(made[0], other).all() for other in made[1:])


def test_a_front_is_the_number_that_its_stages_make():
    front = Front(Mean("divide"), None, EpsForm.ADDED, Root("sqrt"))
    total, eps = np.float32([[12.0], [75.0]]), np.float32([[1.0], [0.0]])
    assert scalars(total, front, eps, 3)[:, 0].tolist() == [np.float32(1 / 3), np.float32(0.2)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rms_norm", "expected MODULE:NAME"),
        ("flax.nnx:RMSNrm", "unknown name in flax.nnx 'RMSNrm'. Did you mean 'RMSNorm'"),
        ("no_such.module:f", "is it installed"),
        ("nothing.py:f", "no such file; expected NAME.py:FUNCTION"),
        ("math:pi", "expected a function, got float"),
    ],
)
def test_a_kernel_that_is_not_there_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


def test_a_kernel_is_refused_that_gives_another_shape_or_has_no_room():
    with pytest.raises(ValueError, match=r"gave the shape \(2,\) for rows \(2, 8\)"):
        Kernel(lambda x, weight, eps: x[:, 0], 8)(np.ones((2, 8)), np.ones(8), 1e-5)
    with pytest.raises(ValueError, match="d = 4: expected at least 8"):
        Kernel(double, 4)


def test_float64_sums_are_those_of_datapaths():
    x = np.float32(np.random.default_rng(6).normal(size=(8, 45)))
    for given in wide_sums(None, 45):
        want = summed(x, Precision.parse(given.text))
        assert (wide_sum(np.float64(x), given.text.partition(":")[2])[:, 0] == want).all(), given


def test_a_fused_multiply_add_in_numpy_rounds_once():
    """Between two float32, and just off: there a rounding to float64 first would show."""
    rng = np.random.default_rng(7)
    a, b, c = np.float32(rng.normal(size=(3, 4096)) * 2.0 ** rng.integers(-30, 30, (3, 4096)))
    tiny = np.float32([2.0**-60, -(2.0**-60), 0])
    near = np.float32(1 + 2.0**-12)  # its square lies between two float32
    a, b, c = (
        np.append(p, q) for p, q in zip((a, b, c), ([near] * 3, [near] * 3, tiny), strict=True)
    )
    assert (fma(a, b, c) == exact.fma(a, b, c)).all()
    assert len(set(fma(a, b, c)[-3:].tolist())) == 2


def random_tree(rng, d):
    """Adds of two drawn terms, or earlier adds, until one is left."""
    left, merges = list(range(d)), []
    while len(left) > 1:
        one, other = (left.pop(rng.integers(len(left))) for _ in range(2))
        merges.append((one, other))
        left.append(d + len(merges) - 1)
    return merges


def tree_sum(terms, merges):
    """Of rows [n, d] the sum in the order of a tree, [n, 1]."""
    values = list(terms.T)
    for one, other in merges:
        values.append(values[one] + values[other])
    return values[-1][:, None]


def test_a_random_tree_is_learned_from_what_a_large_square_absorbs():
    """Behind halves, which show no unit in the last place of a float32 sum but at a boundary."""
    d = 24
    merges = random_tree(np.random.default_rng(3), d)

    def added(x):
        return tree_sum(np.square(np.float32(x)), merges)

    def kernel(x, weight, eps):
        root = np.float32(1) / np.sqrt(added(x) / np.float32(d) + np.float32(eps))
        return np.float16(np.float32(x) * root * np.float32(weight))

    search = Search(Kernel(kernel, d, "fp16"), np.random.default_rng(4))
    front = Front(Mean("divide"), None, EpsForm.UNDER, Root("sqrt"))
    tail = Tail(None, None, False, "fp16")
    found = learned(search, Arithmetic("fp16", Sum(None, "fp32:pairwise"), front, tail))
    x = np.float32(np.random.default_rng(5).normal(size=(256, d)))
    assert same(found.of_squares(x), added(x)).all()


def test_a_tree_of_a_mean_is_learned_from_what_cancels():
    d = 24
    merges = random_tree(np.random.default_rng(8), d)

    def kernel(x, weight, eps):
        mean = tree_sum(np.float32(x), merges) / np.float32(d)
        away = np.float32(x) - mean
        root = 1 / np.sqrt((away**2).mean(-1, keepdims=True) + np.float32(eps))
        return np.float16(away * root * np.float32(weight))

    search = Search(Kernel(kernel, d, "fp16"), np.random.default_rng(4))
    front = Front(Mean("divide"), None, EpsForm.UNDER, Root("sqrt"))
    found = learned(
        search,
        Arithmetic("fp16", Sum(None, "fp32:pairwise"), front, Tail(None, None, False, "fp16")),
    )
    x = np.float32(np.random.default_rng(5).normal(size=(256, d)))
    assert same(found.added(list(x.T)), tree_sum(x, merges)).all()


def test_a_tree_is_described_by_its_chains():
    """Two strided chains of three terms, then one add."""
    assert described(((0, 2), (6, 4), (1, 3), (8, 5), (7, 9))) == (
        "2 chains of 3 terms (stride 2); 3 adds deep"
    )


@pytest.mark.parametrize("text", [*eight_bits(D), "fp16", "bf16", "fp32"])
def test_what_holds_the_outputs_is_seen(text):
    """Rows of other sizes, so that a tensor's scale isn't a row's; bf16's all fit into fp16."""
    floats = {"fp32": (None,), "fp16": ("fp16", None), "bf16": ("fp16", "bf16", None)}
    rng = np.random.default_rng(10)
    y = np.float32(rng.normal(size=(32, D)) * rng.uniform(0.5, 2, (32, 1)))
    assert outputs(np.asarray(Output(text)(y))) == floats.get(text, (text,))


@pytest.mark.system
@pytest.mark.parametrize("seed", [11, 15])
def test_a_planted_datapath_is_found(seed):
    """One in bfloat16, and one in 8 bits with a scale for a whole call."""
    kernel = planted(seed, D)
    found = probe(kernel, D, kernel.dtype)
    assert found.exact
    assert kernel.among(found)


@pytest.mark.system
def test_a_strange_kernel_is_never_called_exact():
    """The wider one has a row in which it differs, and which is as short as it can be."""
    strange = probe(double, D, "fp32")
    assert not strange.exact
    assert strange.left
    row = strange.differs
    again = double(row.x, row.weight[0], float(row.eps[0, 0]))
    assert (again != strange.predicted).any()
    assert "smallest row that differs" in report(strange)


@pytest.mark.extended
@pytest.mark.parametrize("first", range(0, PLANTED, 10))
def test_planted_datapaths(first):
    """Sixty, ten at a time: truth in the set, of which no test row tells two apart."""
    missed = []
    for seed in range(first, first + 10):
        kernel = planted(seed, D)
        found = probe(kernel, D, kernel.dtype, seed=1000 + seed)
        missed += [] if kernel.among(found) and found.exact else [seed]
    assert missed == []


LAYERNORMS = {
    "two sums": Datapath(sum="fp32:lanes8", mean=Mean("divide"), root=Root("sqrt")),
    "row moments": Datapath(sum=WRITTEN, variance="welford8", root=Root("sqrt")),
    "fused": Datapath(sum=WRITTEN, variance="welford4x2", fused=True, root=Root("sqrt")),
}


@pytest.mark.extended
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", LAYERNORMS)
def test_a_planted_layernorm_is_found(name, dtype):
    narrow = None if dtype == "fp32" else dtype
    path = dataclasses.replace(LAYERNORMS[name], input=narrow, output=narrow)
    kernel = Planted(path, dtype, center=True, way=FUSED if path.fused else "")
    found = probe(kernel, D, dtype)
    assert found.exact
    assert found.observed.center
    assert kernel.among(found)


@pytest.mark.extended
@pytest.mark.parametrize("variance", ["means", "fused"])
def test_a_layernorm_in_one_pass_over_an_unknown_tree_is_found(variance):
    """Squares enter the adder unrounded, and γ joins 1/rms, as XLA compiles Flax's."""
    d, f = 24, np.float32
    merges = random_tree(np.random.default_rng(9), d)

    def squared(x):
        values = list(x.T)
        for one, other in merges:
            leaf = max(one, other) if max(one, other) < d else min(one, other)
            rest = values[one + other - leaf]
            if leaf >= d:
                values.append(rest + values[leaf])
                continue
            rest = rest * rest if one + other - leaf < d else rest
            values.append(reference.fma(values[leaf], values[leaf], rest))
        return values[-1][:, None]

    def kernel(x, weight, eps):
        mean, square = tree_sum(x, merges) / f(d), squared(x) / f(d)
        made = reference.fma(-mean, mean, square) if variance == "fused" else square - mean * mean
        return (x - mean) * (f(1) / np.sqrt(np.maximum(made, f(0)) + f(eps)) * weight)

    found = probe(kernel, d, "fp32")
    assert found.exact
    kinds = [(a.sum.fused, a.sum.variance, a.tail.way) for a in found.left]
    assert ("later", f"{variance}.clipped", JOINED) in kinds
