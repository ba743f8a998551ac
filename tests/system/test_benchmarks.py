"""Every benchmark runs, on the least that it takes."""

import importlib.util
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from tests.support.small_checkpoints import BERT, CONFIGS, tensors, write_folder

pytestmark = pytest.mark.extended

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
SHAPE = "--layers 1 --width 16 --heads 2 --context 8 --vocabulary 32 --batch 2 --rounds 1"
SMALLEST = {
    "approximate_error": "--count 2 --widths 16 --out OUT",
    "attention_blocks": "--lengths 8 --rounds 1 --out OUT/a.json",
    "datapaths": "hf:LLAMA --only iron-bf16 --out OUT/a.json",
    "datapaths_speed": "--width 64 --layers 1 --batch 1 --length 8 --rounds 2 --only iron-bf16 "
    "--out OUT/a.json",
    "depth": f"{SHAPE} --out OUT/a.json",
    "encoder_scales": "--model hf:BERT --windows 1 --length 16 --out OUT/a.json",
    "evaluation_speed": "--batch 1 --length 8 --rounds 1 --out OUT/a.json",
    "gpu_code": "--out OUT/a.json",
    "growth": "--axes layers --points 2 --calls 1 --out OUT/growth",
    "half_proof": "hf:LLAMA --windows 1 --window 8 --enlarge 4 --out OUT",
    "kernels": "--only flax_rmsnorm --d 16 --out OUT",
    "large_model": "--layers 1 --window 8 --divide 32 --stream --out OUT/a.json",
    "numerics_error": "--rows ROWS --out OUT",
    "numerics_onepass": "--width 8 --count 2 --out OUT/a.json",
    "numerics_speed": "--width 64 --layers 1 --batch 1 --length 8 --vocab 16 --rounds 2 "
    "--only fp16:pairwise --out OUT",
    "scans": "--rows 2 --width 8 --rounds 1 --out OUT",
    "start_speed": "REPOSITORY --python PYTHON --models hf:LLAMA --window 8 --rounds 1 "
    "--out OUT/a.json",
    "step_parts": f"{SHAPE} --nanogpt NANOGPT --out OUT/a.json",
    "sweep_speed": "REPOSITORY --python PYTHON --out OUT/a.json --sweep model=tiny model.layers=1 "
    "model.width=16 data=embedded data.vocab_size=260 seed=0,1 steps=2 batch=2 window=8 "
    "optimizer.warmup=0 eval_every=1 eval_windows=2 log_every=1",
    "tokenization": "--speed 0.1 --memory 0.1 --vocabulary 300 --rounds 1 --out OUT/a.json",
    "train_speed": f"{SHAPE} --square 4 --out OUT/a.json",
    "watch_cost": f"{SHAPE} --out OUT/a.json",
}
NEEDS = {
    "evaluation_speed": "transformers",
    "half_proof": "transformers",
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
    for family, config in (("bert", BERT), ("llama", CONFIGS["llama"])):
        if family.upper() in arguments:
            write_folder(tmp_path / family, config, tensors(family))
            arguments = arguments.replace(family.upper(), str(tmp_path / family))
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
