"""Where a training step's time goes: its matrix products and its attention alone, beside all of it.

    pip install torch==2.13.0
    python benchmarks/step_parts.py --out benchmarks/results/step_parts_cpu.json

The model, the step and the peers are train_speed.py's `nanogpt`, here all in one process.
"products" takes the step's 37 maps of rows (four square ones and the MLP's two in each layer, and
the head) forward and back, x W, g Wᵀ and xᵀ g, on matrices that lie ready in the step's dtype.
"attention" is causal attention and its gradient in each layer, "gelu" that of each MLP, "loss" the
cross entropy of float32 logits and its gradient, "update" clipping and AdamW. "rest" is what is
left of a step: norms, casts, sums, calls, and what the parts cost more or less for standing alone.
PyTorch's GELU and loss are compiled. All take turns; given is the median over rounds, in
milliseconds.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from outcome import keep
from train_ours import RATE, STEPS, training
from train_side import SHAPES, Shape
from turns import in_turns

from normlab.loss import token_nll
from normlab.model import ComputeConfig
from normlab.training.optimizers import make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig

Call = Callable[[], Any]


def matrices(shape: Shape) -> list[tuple[np.ndarray, ...]]:
    """Rows, weights and the gradient of what comes out, for each map."""
    rng, rows = np.random.default_rng(0), shape.batch * shape.context
    return [
        tuple(rng.standard_normal(s, np.float32) for s in ((rows, i), (i, o), (rows, o)))
        for i, o in shape.maps
    ]


def heads(shape: Shape) -> list[np.ndarray]:
    """Queries, keys, values and the gradient of what comes out, [b, l, h, k]."""
    sizes = (shape.batch, shape.context, shape.heads, shape.width // shape.heads)
    rng = np.random.default_rng(1)
    return [rng.standard_normal(sizes, np.float32) for _ in range(4)]


def activations(shape: Shape) -> list[np.ndarray]:
    """The hidden rows of each MLP."""
    sizes = (shape.batch * shape.context, 4 * shape.width)
    rng = np.random.default_rng(2)
    return [rng.standard_normal(sizes, np.float32) for _ in range(shape.layers)]


def scores(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Logits [rows, v] and their targets."""
    rng, rows = np.random.default_rng(3), shape.batch * shape.context
    targets = rng.integers(0, shape.vocabulary, rows, dtype=np.int32)
    return rng.standard_normal((rows, shape.vocabulary), np.float32), targets


def jax_weights(shape: Shape) -> dict[str, jax.Array]:
    """Matrices of the step's shapes, or their gradients, by names that weight decay knows."""
    rng = np.random.default_rng(4)
    return {
        f"{n}.kernel": jnp.asarray(rng.standard_normal(sizes, np.float32))
        for n, sizes in enumerate(shape.maps)
    }


def jax_parts(shape: Shape, dtype: str, products: str) -> dict[str, Call]:
    """The parts as XLA takes them."""
    options = ComputeConfig(dtype=dtype, products=products).compiler_options()
    compiled = partial(jax.jit, compiler_options=options)
    given = [tuple(jnp.asarray(a, dtype) for a in three) for three in matrices(shape)]
    q, k, v, g = (jnp.asarray(a, dtype) for a in heads(shape))

    @compiled
    def linear(given: Any) -> Any:
        return [(x @ w, g @ w.T, x.T @ g) for x, w, g in given]

    @compiled
    def attention(q: Any, k: Any, v: Any, g: Any) -> Any:
        call = partial(jax.nn.dot_product_attention, is_causal=True)
        found = []
        for _ in range(shape.layers):
            out, back = jax.vjp(call, q, k, v)
            q = q + back(g)[0]  # so that no layer is the one before
            found.append(out)
        return found, q

    hidden = [jnp.asarray(x, dtype) for x in activations(shape)]
    logits, targets = jnp.asarray(scores(shape)[0]), jnp.asarray(scores(shape)[1])

    @compiled
    def gelu(hidden: Any) -> Any:
        return [_with_gradient(partial(jax.nn.gelu, approximate=False), x) for x in hidden]

    @compiled
    def loss(logits: Any) -> Any:
        return jax.value_and_grad(lambda x: token_nll(x, targets).mean())(logits)

    gradients = jax_weights(shape)
    optimizer = make_optimizer(AdamWConfig(**RATE), STEPS, gradients)
    held = [jax_weights(shape), optimizer.init(gradients)]

    @partial(compiled, donate_argnums=(0, 1))
    def update(weights: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    def updated() -> None:
        held[:] = jax.block_until_ready(update(*held, gradients))

    return {
        "products": lambda: jax.block_until_ready(linear(given)),
        "attention": lambda: jax.block_until_ready(attention(q, k, v, g)),
        "gelu": lambda: jax.block_until_ready(gelu(hidden)),
        "loss": lambda: jax.block_until_ready(loss(logits)),
        "update": updated,
    }


def _with_gradient(f: Callable[[Any], Any], x: Any) -> Any:
    out, back = jax.vjp(f, x)
    return out, back(x)


def torch_parts(shape: Shape, dtype: str) -> dict[str, Call]:
    """The parts as PyTorch takes them."""
    import torch

    def tensor(a: np.ndarray) -> "torch.Tensor":
        return torch.as_tensor(a).to(getattr(torch, dtype))

    given = [tuple(map(tensor, three)) for three in matrices(shape)]
    q, k, v, g = (tensor(a).transpose(1, 2).contiguous() for a in heads(shape))
    q, k, v = (t.requires_grad_() for t in (q, k, v))

    def linear() -> Any:
        return [(x @ w, g @ w.T, x.T @ g) for x, w, g in given]

    def attention() -> Any:
        for _ in range(shape.layers):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(out, (q, k, v), g)

    hidden = [tensor(x).requires_grad_() for x in activations(shape)]
    logits = torch.as_tensor(scores(shape)[0]).requires_grad_()
    targets = torch.as_tensor(scores(shape)[1], dtype=torch.long)
    gelu = torch.compile(torch.nn.functional.gelu)
    cross_entropy = torch.compile(torch.nn.functional.cross_entropy)
    weights = [torch.nn.Parameter(torch.randn(sizes)) for sizes in shape.maps]
    for w in weights:
        w.grad = torch.randn_like(w)
    optimizer = torch.optim.AdamW(weights, 1e-3, (0.9, 0.95), weight_decay=0.1)

    def gelus() -> Any:
        return [torch.autograd.grad(gelu(x), x, x.detach()) for x in hidden]

    def loss() -> Any:
        return torch.autograd.grad(cross_entropy(logits, targets), logits)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return {
        "products": linear, "attention": attention, "gelu": gelus, "loss": loss, "update": update,
    }  # fmt: skip


def calls(shape: Shape) -> dict[str, Call]:
    """Every part and every step, by library, dtype and part."""
    import torch
    import train_peer

    torch.set_num_threads(os.cpu_count() or 1)
    found: dict[str, Call] = {}
    for dtype in ("float32", "bfloat16"):
        parts = {f"normlab {p} {dtype}": jax_parts(shape, dtype, p) for p in ("xla", "onednn")}
        parts[f"PyTorch compiled {dtype}"] = torch_parts(shape, dtype)
        for products in ("xla", "onednn"):
            step = partial(training(shape, dtype, products), 0)
            parts[f"normlab {products} {dtype}"]["step"] = step
        peer = partial(train_peer.training(shape, dtype, compiled=True), 0)
        parts[f"PyTorch compiled {dtype}"]["step"] = peer
        found |= {f"{who}: {part}": call for who, of in parts.items() for part, call in of.items()}
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sizes = {name: size for name, size in asdict(SHAPES["nanogpt"]).items() if name != "llama"}
    for name, value in (sizes | {"rounds": 7}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    shape = Shape(**{name: getattr(asked, name) for name in sizes})
    seconds = in_turns(calls(shape), asked.rounds)
    rows: dict[str, dict[str, float]] = {}
    for name, times in seconds.items():
        who, part = name.split(": ")
        rows.setdefault(who, {})[part] = 1e3 * statistics.median(times)
    for who, row in rows.items():
        row["rest"] = 2 * row["step"] - sum(row.values())
        print(f"{who}: " + ", ".join(f"{part} {ms:.0f} ms" for part, ms in row.items()))
    result = {
        "milliseconds": rows,
        "shape": asdict(shape),
        "rounds": asked.rounds,
    }
    keep(result, asked.out)


if __name__ == "__main__":
    main()
