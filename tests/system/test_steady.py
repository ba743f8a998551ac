"""What a long run must not do: grow."""

import ctypes
import gc
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from normlab.data import load_tokens
from normlab.runs.run import Run
from normlab.training.identity import sign
from normlab.training.trainer import Trainer
from tests.support.runs import tiny_config

STATM = Path("/proc/self/statm")
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's: what earlier tests freed goes back to the system, so that no leak can hide in it."""
sized = pytest.mark.skipif(not (STATM.exists() and TRIM), reason="needs Linux and glibc")
LIMIT = 16 << 20
"""Bytes that 250 steps may add; one copy of this model and its optimizer's state has 0.5 MB."""


def trainer(tmp_path, **fields):
    config = tiny_config(
        tmp_path, **{"eval_every": 1000, "eval_windows": 4, "run": str(tmp_path)} | fields
    )
    run, tokens = Run(tmp_path), load_tokens(config.data)
    sign(run, config, tokens, [])
    return Trainer(config, tokens, run)


def resident():
    """Bytes that the process holds: neither garbage nor what malloc keeps for later use."""
    gc.collect()
    TRIM(0)
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown(tmp_path, leak=False, **fields):
    """Bytes that the process gains between steps 50 and 300 of a run."""
    made, sizes = trainer(tmp_path, steps=300, optimizer={"warmup": 2}, **fields), {}
    step, note, kept = made.step, made._note, []

    def leaking(params, state, *rest):
        out = step(params, state, *rest)
        if leak:
            kept.append(jax.tree.map(jnp.copy, out[:2]))
        return out

    def noting(progress, number, metrics):
        note(progress, number, metrics)
        if number in (50, 300):
            sizes[number] = resident()

    made.step, made._note = leaking, noting
    made.fit()
    return sizes[300] - sizes[50]


@pytest.mark.extended
@sized
def test_memory_stays_flat(tmp_path):
    assert grown(tmp_path / "kept", leak=True) > LIMIT, "a leak must be seen"
    assert grown(tmp_path / "freed") < LIMIT


@pytest.mark.extended
@sized
def test_memory_stays_flat_over_validations_checkpoints_and_looks(tmp_path):
    assert grown(tmp_path, eval_every=10, diagnostics_every=10) < LIMIT
