"""Every benchmark runs, on the least that it takes."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from normlab.loss import token_nll
from normlab.runs.names import to_names
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
    "evaluation_speed": "--windows 1 --batch 1 --length 8 --rounds 1 --out OUT/a.json",
    "gpu_code": "--out OUT/a.json",
    "growth": "--axes layers --points 2 --calls 1 --out OUT/a.json",
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
    "step_parts": f"{SHAPE} --out OUT/a.json",
    "sweep_speed": "REPOSITORY --python PYTHON --out OUT/a.json --sweep model=tiny model.layers=1 "
    "model.width=16 data=embedded data.vocab_size=260 seed=0,1 steps=2 batch=2 window=8 "
    "optimizer.warmup=0 eval_every=1 eval_windows=2 log_every=1",
    "tokenization": "--speed 0.1 --memory 0.1 --vocabulary 300 --rounds 1 --out OUT/a.json",
    "train_speed": f"small {SHAPE} --steps 1 --out OUT/a.json",
    "watch_cost": f"{SHAPE} --out OUT/a.json",
}
NEEDS = {
    "evaluation_speed": "transformers",
    "half_proof": "transformers",
    "gpu_code": "jax_plugins",
    "step_parts": "torch",
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
    from train_ours import training
    from train_side import Shape

    small = Shape(layers=2, width=8, heads=2, context=4, vocabulary=16, batch=3)
    step = training(small, dtype)
    assert step(0) == pytest.approx(np.log(16), rel=0.5)
    parts = jax_parts(small, dtype, "xla")
    assert list(parts) == ["products", "attention", "gelu", "loss", "update"]
    for call in (*parts.values(), *parts.values()):
        call()


@pytest.mark.parametrize("llama", [False, True])
def test_the_peer_in_pytorch_is_the_same_network(llama):
    torch = pytest.importorskip("torch")
    from train_ours import decoder
    from train_peer import Decoder
    from train_side import Shape

    shape = Shape(2, 16, 2, 8, 32, 2, llama)
    model, peer, (inputs, targets) = decoder(shape), Decoder(shape), shape.batches()[0]
    of = {name: torch.tensor(np.asarray(w)) for name, w in to_names(nnx.state(model)).items()}
    given = {"embed.weight": of["embed.embedding"], "norm.weight": of["norm_final.weight"]}
    if not llama:
        given["positions.weight"] = of["positions.embedding"]
    for i in range(shape.layers):
        here = f"blocks.{i}"
        for n, part in enumerate(("attention", "mlp"), 1):
            given[f"{here}.norm{n}.weight"] = of[f"{here}.{part}.norm_in.weight"]
        heads = [of[f"{here}.attention.branch.{n}.kernel"].T for n in ("query", "key", "value")]
        given[f"{here}.attention.qkv.weight"] = torch.cat(heads)
        given[f"{here}.attention.out.weight"] = of[f"{here}.attention.branch.out.kernel"].T
        for name in ("gate", "up", "down") if llama else ("gate", "down"):
            given[f"{here}.mlp.{name}.weight"] = of[f"{here}.mlp.branch.{name}.kernel"].T
    assert set(given) == {name for name, _ in peer.named_parameters()}
    peer.load_state_dict(given, strict=False)
    theirs = peer(torch.tensor(inputs, dtype=torch.long), torch.tensor(targets, dtype=torch.long))
    assert float(theirs.detach()) == pytest.approx(
        float(token_nll(model(inputs), targets).mean()), rel=1e-6
    )
