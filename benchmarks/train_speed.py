"""Tokens per second of training: normlab beside nanoGPT (PyTorch) and nanodo (Flax Linen).

    pip install torch==2.13.0
    git clone https://github.com/karpathy/nanoGPT https://github.com/google-deepmind/nanodo
    python benchmarks/train_speed.py --nanogpt nanoGPT --nanodo nanodo \
        --out benchmarks/results/train_speed_cpu.json

One model on all sides, GPT-2's shape without biases: learned positions, LayerNorm, GELU, tied head.
nanodo differs in two things, both its own: its GELU is the tanh approximation, and the product of
its head stays float32 where the rest is bfloat16.
One step is forward, backward, clipping at 1.0 and AdamW, on tokens that lie ready. nanodo's own
loop needs tensorflow-datasets, clu, sentencepiece and ml-collections; what runs here is its
model.py under the same loss and optimizer as normlab's.

All variants stay loaded and take turns, there and back again; a rate is the median over rounds, a
ratio is the median over rounds of the ratio within one round, so that a busy machine slows both.
Beside the wall's time stands the processor time of all threads: on a machine that others use too it
is the steadier one.

Model FLOPs of a token are 6·(12·L·d² + V·d) + 12·L·d·T: two for each weight of a matrix product
(embedding rows are looked up, the tied head counts once) and 4·T·d for attention's two products in
each layer, thrice, as the way back takes two products for each. Attention counts as if it were not
causal and nothing is counted for what is computed twice (Chowdhery et al. 2022, arXiv:2204.02311,
appendix B). A share of peak is their rate over the best rate of matrix products that this machine
reached in the same run, in that library and dtype; for `onednn` too that is XLA's default product.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from normlab.loss import token_nll
from normlab.model import ComputeConfig, ModelConfig, PlacementConfig, Transformer
from normlab.norms import norms
from normlab.training.optimizers import make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.step import learned, make_step

Step = Callable[[int], float]
"""One step of training on the batch of that number; its loss."""

RATE = {"lr": 1e-3, "warmup": 0, "final_lr": 1.0}
STEPS = 1_000_000


def batches(asked: argparse.Namespace) -> list[tuple[np.ndarray, np.ndarray]]:
    """A few batches of random tokens."""
    shape = (8, asked.batch, asked.context + 1)
    ids = np.random.default_rng(0).integers(0, asked.vocabulary, shape, dtype=np.int32)
    return [(rows[:, :-1], rows[:, 1:]) for rows in ids]


def ours(asked: argparse.Namespace, dtype: str, products: str = "xla") -> Step:
    """normlab, as `python -m train` runs it."""
    config = ModelConfig(
        layers=asked.layers, width=asked.width, heads=asked.heads, max_length=asked.context,
        activation="gelu", gated=False, positions="learned",
    )  # fmt: skip
    norm = norms["layernorm"].Config(bias=False)
    model = Transformer(config, norm, PlacementConfig("pre"), asked.vocabulary)
    graphdef, params = nnx.split(model)
    optimizer = make_optimizer(AdamWConfig(**RATE), STEPS, learned(params))
    step = make_step(graphdef, optimizer, 0, STEPS, ComputeConfig(dtype=dtype, products=products))
    held, data = [params, optimizer.init(learned(params))], batches(asked)

    def run(i: int) -> float:
        held[0], held[1], metrics = step(*held, np.int32(i), *data[i % len(data)])
        return float(metrics["loss"])

    return run


def nanodo(asked: argparse.Namespace, dtype: str) -> Step:
    """The model of nanodo, its branches in `dtype`, under the loss and optimizer of normlab."""
    sys.path.insert(0, str(asked.nanodo))
    from nanodo.model import DoConfig, TransformerDo

    model = TransformerDo(
        DoConfig(
            D=asked.width, H=asked.heads, L=asked.context, N=asked.layers, V=asked.vocabulary,
            F=4 * asked.width, dtype=jnp.dtype(dtype), fsdp_enabled=False,
        )
    )  # fmt: skip
    data = batches(asked)
    params = model.init(jax.random.key(0), data[0][0])
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, b2=0.95, weight_decay=0.1)
    )

    def loss(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return token_nll(model.apply(params, inputs), targets).mean()

    def step_once(params: Any, state: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, inputs, targets)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    step, held = jax.jit(step_once, donate_argnums=(0, 1)), [params, optimizer.init(params)]

    def run(i: int) -> float:
        held[0], held[1], value = step(*held, *data[i % len(data)])
        return float(value)

    return run


def nanogpt(asked: argparse.Namespace, dtype: str, compiled: bool) -> Step:
    """The model and optimizer of nanoGPT, in the step of its train.py."""
    import torch

    sys.path.insert(0, str(asked.nanogpt))
    from model import GPT, GPTConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(os.cpu_count() or 1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    model = GPT(
        GPTConfig(
            block_size=asked.context, vocab_size=asked.vocabulary, n_layer=asked.layers,
            n_head=asked.heads, n_embd=asked.width, dropout=0.0, bias=False,
        )
    ).to(device)  # fmt: skip
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device)
    call = torch.compile(model) if compiled else model
    data = [tuple(torch.as_tensor(t, dtype=torch.long, device=device) for t in b)
            for b in batches(asked)]  # fmt: skip

    def run(i: int) -> float:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            _, loss = call(*data[i % len(data)])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run


def products(asked: argparse.Namespace) -> dict[str, Step]:
    """For each library and dtype one square product of `--square` rows; nothing to learn."""
    import torch

    rows = asked.square
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = np.random.default_rng(0).standard_normal((rows, rows), np.float32)
    product, found = jax.jit(lambda a, b: a @ b), dict[str, Step]()

    def jax_product(a: jax.Array) -> Step:
        return lambda _: float(product(a, a)[0, 0])

    def torch_product(a: "torch.Tensor") -> Step:
        return lambda _: float((a @ a)[0, 0])

    for dtype in ("float32", "bfloat16"):
        found[f"product jax {dtype}"] = jax_product(jnp.asarray(x, dtype))
        wide = torch.as_tensor(x, device=device)
        found[f"product torch {dtype}"] = torch_product(wide.to(getattr(torch, dtype)))
    return found


def variants(asked: argparse.Namespace) -> dict[str, Step]:
    """Everything that takes turns; what was not given a path is left out."""
    makers: dict[str, Callable[[str], Step]] = {"normlab": lambda dtype: ours(asked, dtype)}
    if jax.default_backend() == "cpu":
        makers["normlab onednn"] = lambda dtype: ours(asked, dtype, "onednn")
    if asked.nanogpt:
        makers["nanoGPT eager"] = lambda dtype: nanogpt(asked, dtype, compiled=False)
        makers["nanoGPT compiled"] = lambda dtype: nanogpt(asked, dtype, compiled=True)
    if asked.nanodo:
        makers["nanodo"] = lambda dtype: nanodo(asked, dtype)
    names = {f"{m} {d}": (m, d) for m, d in itertools.product(makers, asked.dtypes)}
    return {name: makers[m](d) for name, (m, d) in names.items()}


def measure(turns: dict[str, Step], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round by the wall and by the processor, after a round that compiles."""
    for name, step in turns.items():
        began = time.perf_counter()
        loss = step(0)
        print(f"{name}: {loss:.3f}, first call {time.perf_counter() - began:.1f} s", flush=True)
    found: dict[str, dict[str, list[float]]] = {n: {"wall": [], "processor": []} for n in turns}
    for turn in range(1, rounds + 1):
        for name in list(turns) if turn % 2 else list(turns)[::-1]:
            clocks = time.perf_counter(), time.process_time()
            turns[name](turn)
            found[name]["wall"].append(time.perf_counter() - clocks[0])
            found[name]["processor"].append(time.process_time() - clocks[1])
        print(f"round {turn} of {rounds}", flush=True)
    return found


def flops(asked: argparse.Namespace) -> int:
    """Of a token of training; see the top of this file."""
    matrices = 12 * asked.layers * asked.width**2 + asked.vocabulary * asked.width
    return 6 * matrices + 12 * asked.layers * asked.width * asked.context


def summary(
    asked: argparse.Namespace, seconds: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """Rates, ratios and shares of peak."""
    tokens, base = asked.batch * asked.context, seconds.get("nanoGPT eager float32")
    rows: dict[str, Any] = {}
    for name, found in seconds.items():
        product = name.startswith("product")
        work = 2 * asked.square**3 if product else flops(asked) * tokens
        rows[name] = {f"{clock} seconds": statistics.median(s) for clock, s in found.items()}
        rows[name] |= {"least wall seconds": min(found["wall"])}
        rows[name] |= {"GFLOP/s": work / rows[name]["wall seconds"] / 1e9}
        if product:
            rows[name] |= {"best GFLOP/s": work / rows[name]["least wall seconds"] / 1e9}
            continue
        library = "torch" if name.startswith("nanoGPT") else "jax"
        peak = min(seconds[f"product {library} {name.rpartition(' ')[2]}"]["wall"])
        peak = 2 * asked.square**3 / peak
        rows[name] |= {"tokens per second": tokens / rows[name]["wall seconds"]}
        rows[name] |= {"share of peak": work / rows[name]["wall seconds"] / peak}
        for clock in ("wall", "processor") if base else ():
            pairs = zip(base[clock], found[clock], strict=True)  # type: ignore[index]
            rows[name][f"speed over nanoGPT eager float32 ({clock})"] = statistics.median(
                a / b for a, b in pairs
            )
    return rows


def table(rows: dict[str, Any]) -> str:
    """The summary for people, in Markdown."""
    keys = ["tokens per second", "wall seconds", "least wall seconds", "processor seconds",
            "GFLOP/s", "share of peak", "speed over nanoGPT eager float32 (wall)",
            "speed over nanoGPT eager float32 (processor)"]  # fmt: skip
    lines = [["", *keys], ["---"] * (len(keys) + 1)]
    lines += [[n, *(f"{row[k]:.4g}" if k in row else "" for k in keys)] for n, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--nanodo", type=Path, help="a checkout of google-deepmind/nanodo")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    shape = {"layers": 6, "width": 384, "heads": 6, "context": 256, "vocabulary": 8192, "batch": 8}
    for name, value in (shape | {"rounds": 9, "square": 2048}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    asked = parsed()
    rows = summary(asked, measure(variants(asked) | products(asked), asked.rounds))
    print(table(rows))
    packages = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
    result = {
        "model": {k: getattr(asked, k) for k in ("layers", "width", "heads", "context",
                                                 "vocabulary", "batch")},
        "rounds": asked.rounds,
        "model FLOPs of a token": flops(asked),
        "measured": rows,
        "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPUs, {platform.machine()}",
        "load": os.getloadavg()[1],
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "versions": {p: version(p) for p in packages} | {"python": platform.python_version()},
    }  # fmt: skip
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
