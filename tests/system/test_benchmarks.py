"""Every benchmark runs, on the least that it takes; and the fused kernel beside them is right."""

import functools
import importlib.util
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_norm import fused_norm

from normlab.numerics import Accumulator
from tests.support.small_checkpoints import BERT, tensors, write_folder

pytestmark = pytest.mark.extended

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
SHAPE = "--layers 1 --width 16 --heads 2 --context 8 --vocabulary 32 --batch 2 --rounds 1"
SMALLEST = {
    "approximate_error": "--count 2 --widths 16 --out OUT",
    "attention_blocks": "--lengths 8 --rounds 1 --out OUT/a.json",
    "depth": f"{SHAPE} --out OUT/a.json",
    "encoder_scales": "--model hf:BERT --windows 1 --length 16 --out OUT/a.json",
    "evaluation_speed": "--batch 1 --length 8 --rounds 1 --out OUT/a.json",
    "gpu_code": "--out OUT/a.json",
    "kernel_speed": "--rows 2 --width 4 --rounds 1 --bandwidth 10 --out OUT",
    "large_model": "--layers 1 --window 8 --divide 32 --out OUT/a.json",
    "numerics_error": "--rows ROWS --out OUT",
    "numerics_onepass": "--width 8 --count 2 --out OUT/a.json",
    "numerics_speed": "--width 64 --layers 1 --batch 1 --length 8 --vocab 16 --rounds 2 "
    "--only fp16:pairwise --out OUT",
    "scans": "--rows 2 --width 8 --rounds 1 --out OUT",
    "step_parts": f"{SHAPE} --nanogpt NANOGPT --out OUT/a.json",
    "sweep_speed": "REPOSITORY --python PYTHON --out OUT/a.json --sweep model=tiny model.layers=1 "
    "model.width=16 data=embedded data.vocab_size=260 seed=0,1 steps=2 batch=2 window=8 "
    "optimizer.warmup=0 eval_every=1 eval_windows=2 log_every=1",
    "train_speed": f"{SHAPE} --square 4 --out OUT/a.json",
    "watch_cost": f"{SHAPE} --out OUT/a.json",
}
NEEDS = {
    "evaluation_speed": "transformers",
    "gpu_code": "jax_plugins",
    "step_parts": "nanogpt",
    "train_speed": "torch",
}
"""Where that can't be imported, a script says no more than its help."""


SCRIPTS = [f.stem for f in sorted(FOLDER.glob("*.py")) if "__main__" in f.read_text()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_runs(name, tmp_path):
    places = {"OUT": tmp_path, "REPOSITORY": FOLDER.parent, "PYTHON": sys.executable}
    arguments = SMALLEST[name]
    for place, path in places.items():
        arguments = arguments.replace(place, str(path))
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        arguments = "--help"
    if "BERT" in arguments:
        write_folder(tmp_path / "bert", BERT, tensors("bert"))
        arguments = arguments.replace("BERT", str(tmp_path / "bert"))
    if "ROWS" in arguments:
        np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(2, 8)))
        arguments = arguments.replace("ROWS", str(tmp_path / "rows.npy"))
    command = [sys.executable, FOLDER / f"{name}.py", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert arguments == "--help" or any(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_stands_beside_a_peer_runs_without_it(dtype):
    from step_parts import jax_parts
    from train_speed import ours

    small = Namespace(layers=2, width=8, heads=2, context=4, vocabulary=16, batch=3)
    step = ours(small, dtype)
    assert step(0) == pytest.approx(np.log(16), rel=0.5)
    parts = jax_parts(small, dtype, "xla")
    assert list(parts) == ["products", "attention", "gelu", "loss", "update"]
    for call in (*parts.values(), *parts.values()):
        call()


# --- The fused kernel, interpreted: forward, statistic bit for bit, backward against float64.

CASES = [(False, 8), (True, 8), (False, 6), (True, 6)]  # widths with and without padding


def given(d, count=5):
    """Rows, γ, β, and what the rows' gradient is."""
    rng = np.random.default_rng(0)
    rows = rng.normal(0.5, 2.0, (count, d)), rng.normal(1, 0.3, d)
    return [
        np.float32(part) for part in (*rows, rng.normal(0, 0.3, d), rng.normal(size=(count, d)))
    ]


def reference(x, weight, bias, eps, center):
    x, weight, bias = (np.float64(part) for part in (x, weight, bias))
    z = x - x.mean(-1, keepdims=True) if center else x
    return z / np.sqrt((z**2).mean(-1, keepdims=True) + eps) * weight + bias


def with_gradients(norm):
    """One program: the rows, and the gradients of x, γ and β."""

    @jax.jit
    def both(x, weight, bias, dy):
        y, back = jax.vjp(norm, x, weight, bias)
        return y, *back(dy)

    return both


def ours(center, precision="fp32", eps=1e-5):
    return functools.partial(fused_norm, eps=eps, center=center, precision=precision, block=2)


@pytest.mark.parametrize(("center", "d"), CASES)
def test_the_kernel_and_its_gradient_are_those_of_float64(center, d):
    x, weight, bias, dy = given(d)
    y, dx, dgain, dbias = map(np.float64, with_gradients(ours(center))(x, weight, bias, dy))
    np.testing.assert_allclose(y, reference(x, weight, bias, 1e-5, center), rtol=3e-6, atol=1e-6)
    normalized = reference(x, np.ones(d), np.zeros(d), 1e-5, center)
    np.testing.assert_allclose(dbias, np.float64(dy).sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dgain, (dy * normalized).sum(0), rtol=1e-5, atol=1e-5)
    for index in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[index] = 1e-6
        up, down = (reference(x + s, weight, bias, 1e-5, center) for s in (step, -step))
        slope = ((up - down) * dy).sum() / 2e-6
        assert abs(dx[index] - slope) < 1e-5 * max(1, abs(slope))


@pytest.mark.parametrize(("center", "d"), CASES)
def test_half_accumulation_is_the_simulators_bit_for_bit_and_so_is_its_gradient(center, d):
    x, _, _, dy = given(d, 40)
    x[0], x[1], x[2] = 300.0 * x[0], 1e-4 * x[1], 0.0  # overflow, subnormal squares, nothing
    x[3] = 40.0 * x[3]
    one, zero = np.ones(d, np.float32), np.zeros(d, np.float32)
    acc = Accumulator("fp16:pairwise")

    def simulated(x, weight, bias):
        return acc.normalize(x, 1e-5, center=center) * weight + bias

    wanted = with_gradients(simulated)(x, one, zero, dy)
    got = with_gradients(ours(center, "fp16:pairwise"))(x, one, zero, dy)
    assert np.array_equal(got[0], wanted[0])
    assert (np.asarray(got[0][0]) == 0).all()  # the sum overflowed
    assert not np.allclose(got[0], reference(x, one, zero, 1e-5, center), rtol=1e-5)
    np.testing.assert_allclose(got[2], wanted[2], rtol=1e-5, atol=1e-5)
    # Where it centres, the simulator's rounded mean is off a little, and not cancelled there.
    usual = slice(4, None)
    atol = 2e-4 if center else 1e-6
    np.testing.assert_allclose(got[1][usual], wanted[1][usual], rtol=1e-5, atol=atol)


def test_the_kernel_takes_any_leading_axes_and_any_dtype_and_refuses_the_rest():
    x, weight, bias, _ = given(16, 6)
    run = jax.jit(ours(True))
    flat = run(x, weight, bias)
    assert np.array_equal(run(x.reshape(2, 3, 16), weight, bias).reshape(6, 16), flat)
    half = run(jnp.asarray(x, jnp.bfloat16), weight, bias)
    assert (half.dtype, half.shape) == (jnp.bfloat16, x.shape)
    one = jnp.ones(16)
    with pytest.raises(ValueError, match="precision of the fused norm 'fp16'"):
        fused_norm(one, one, one, precision="fp16")
    with pytest.raises(ValueError, match="block = 3: expected a power of two"):
        fused_norm(one, one, one, block=3)
