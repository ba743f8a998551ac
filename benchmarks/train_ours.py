"""normlab's step of training as `python -m train` runs it, and its matrix products alone."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from train_side import Shape, Step, serve

from normlab.model import ComputeConfig, ModelConfig, PlacementConfig, Transformer
from normlab.norms import norms

try:
    from normlab.training.optimizers import make_optimizer
    from normlab.training.optimizers.adamw import AdamWConfig
    from normlab.training.step import learned, make_step
except ImportError:  # 8e88a28, which the others are compared with
    from train.optimizer import OptimizerConfig as AdamWConfig
    from train.optimizer import make_optimizer
    from train.step import learned, make_step

RATE = {"lr": 1e-3, "warmup": 0, "final_lr": 1.0}
STEPS = 1_000_000


def decoder(shape: Shape) -> Transformer:
    """The model of that shape."""
    sizes = {"layers": shape.layers, "width": shape.width, "heads": shape.heads}
    kind = {} if shape.llama else {"activation": "gelu", "gated": False, "positions": "learned"}
    config = ModelConfig(**sizes, **kind, max_length=shape.context)
    norm = norms["rmsnorm"].Config() if shape.llama else norms["layernorm"].Config(bias=False)
    return Transformer(config, norm, PlacementConfig("pre"), shape.vocabulary)


def training(shape: Shape, dtype: str, products: str = "xla") -> Step:
    """A step of the decoder."""
    graphdef, params = nnx.split(decoder(shape))
    optimizer = make_optimizer(AdamWConfig(**RATE), STEPS, learned(params))
    compute = ComputeConfig(dtype=dtype, products=products)
    told = {} if (k := parts(shape)) == 1 else {"parts": k}
    step = make_step(graphdef, optimizer, 0, STEPS, compute, **told)
    held, data = [params, optimizer.init(learned(params))], shape.batches()

    def run(i: int) -> float:
        held[0], held[1], metrics = step(*held, np.int32(i), *data[i % len(data)])
        return float(metrics["loss"])

    return run


def parts(shape: Shape) -> int:
    """In how many parts the step takes the batch."""
    try:
        from normlab.training.parts import parts_in_cache
    except ImportError:  # 8e88a28
        return 1
    return parts_in_cache(shape.batch, shape.context, shape.width)


def products_alone(shape: Shape, dtype: str, products: str = "xla") -> Step:
    """The step's products, x W, g Wᵀ and xᵀ g of each map and six of attention, in its parts."""
    rng, k = np.random.default_rng(0), parts(shape)

    def made(*sizes: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(sizes, np.float32), dtype)

    rows, size = shape.batch // k * shape.context, shape.width // shape.heads
    heads = shape.batch // k, shape.heads, shape.context
    maps = [(made(rows, i), made(i, o), made(rows, o)) for i, o in shape.maps]
    of_heads = [[made(*heads, size) for _ in range(4)] for _ in range(shape.layers)]
    scores = [[made(*heads, shape.context) for _ in range(2)] for _ in range(shape.layers)]
    options = ComputeConfig(dtype=dtype, products=products).compiler_options()

    @partial(jax.jit, donate_argnums=1, keep_unused=True, compiler_options=options or None)
    def take(given: Any, room: Any) -> Any:
        maps, heads, scores = given
        attention = [
            (
                *(q @ k.swapaxes(2, 3), g @ v.swapaxes(2, 3), p @ v, d @ k),
                *(p.swapaxes(2, 3) @ g, d.swapaxes(2, 3) @ q),
            )
            for (q, k, v, g), (p, d) in zip(heads, scores, strict=True)
        ]
        return [(x @ w, g @ w.T, x.T @ g) for x, w, g in maps], attention

    given = maps, of_heads, scores
    shapes, threads = jax.eval_shape(take, given, None), 2 - k % 2
    room = [jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes) for _ in range(threads)]
    pool = ThreadPoolExecutor(threads)  # as the step has

    def some(thread: int) -> None:
        for _ in range(k // threads):  # XLA would take a loop of its own only once
            room[thread] = jax.block_until_ready(take(given, room[thread]))  # no page is new

    def run(_: int) -> float:
        list(pool.map(some, range(threads)))
        return 0.0

    return run


def main() -> None:
    """Be a side."""
    makers: dict[str, Callable[[Shape], Step]] = {}
    for dtype in ("float32", "bfloat16"):
        for products in ("xla", "onednn"):
            told = {"dtype": dtype, "products": products}
            makers[f"{products} {dtype}"] = partial(training, **told)
            makers[f"{products} {dtype} products"] = partial(products_alone, **told)
    packages = ("jax", "jaxlib", "flax", "optax")
    python = ".".join(map(str, sys.version_info[:3]))
    serve(makers, {p: version(p) for p in packages} | {"python": python})
