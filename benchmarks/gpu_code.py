"""What XLA's GPU compiler makes of norms, an evaluation and a training step, without a GPU.

    pip install --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12
    python benchmarks/gpu_code.py

(the versions of jax that is installed). Everything is compiled for an H100, down to its PTX;
nothing runs, so this says what is computed and stored, and not how fast.

Of each norm, 2,048 rows of 4,096, with a scale: kernels; the turns of its loops (each turn launches
kernels anew); temporary memory over the input's size; and the float instructions of its PTX. `.rn`
is one IEEE operation, rounded to nearest. A contraction would be an `fma`, flushed subnormals
`.ftz`, an estimate `.approx` or `.full`.

Of the evaluation of Llama-2-7b's shape, a batch as `python -m evaluate` has it: GB of the weights,
and of what XLA plans to hold beside them. The same of a training step at GPT-2's 124M parameters,
12 texts of 1,024 tokens; attention is ours, as cuDNN's is not compiled without a GPU.
"""

import argparse
import collections
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from evaluation_speed import windows
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from large_model import CONFIG, WINDOWS
from outcome import keep

from normlab.evaluation.perplexity import _layer, default_batch, unit_scales
from normlab.model import ComputeConfig, ModelConfig, PlacementConfig, Transformer
from normlab.model.by_layer import ByLayer
from normlab.norms import norms
from normlab.numerics import Accumulator, Precision
from normlab.pretrained.families import configs
from normlab.training.optimizers import make_optimizer
from normlab.training.optimizers.adamw import AdamWConfig
from normlab.training.step import learned, make_step

H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 8 }
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  device_memory_size: 84978434048  memory_bandwidth: 3352320000000  l2_cache_size: 52428800
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
"""
"""The device's figures (NVIDIA's data sheet and CUDA's limits for compute capability 9.0)."""
ROWS, D = 2048, 4096
NORMS = (
    "fp32", "fp16:sequential", "fp16:pairwise", "fp16:lanes8", "fp16:lanes64",
    "fp16:blocks16", "fp16:exact_then_round",
    "bf16:pairwise", "fp8_e5m2:pairwise", "fp8_e4m3:pairwise",
    "e6m9:pairwise", "e5m16:pairwise", "fp32:pairwise", "fp16.flush.saturate:pairwise",
    "fp16.stochastic0:pairwise", "fp16:pairwise.onepass", "fp16:pairwise.input",
    "fp16:pairwise.mean",
)  # fmt: skip
_FLOAT = re.compile(r"^\s*((?:add|sub|mul|div|fma|mad|rsqrt|sqrt|rcp)\.[a-z0-9.]*f32)\s", re.M)


def compiled(lowered: Any, dump: str) -> Any:
    """The program, its PTX in `dump`. Without a GPU nothing can be tuned by trying."""
    options = {"xla_gpu_autotune_level": 0, "xla_dump_to": dump}
    return lowered.compile(compiler_options=options)


def norm(text: str, center: bool, on: NamedSharding) -> dict[str, Any]:
    """What one norm is compiled to."""
    x = jax.ShapeDtypeStruct((ROWS, D), jnp.float32, sharding=on)
    run = jax.jit(lambda x: Accumulator(text, 3.0).normalize(x, 1e-5, center=center))
    with tempfile.TemporaryDirectory() as dump:
        made = compiled(run.lower(x), dump)
        code = "".join(path.read_text() for path in Path(dump).glob("*.ptx"))
    program, turns = made.as_text(), r"known_trip_count[^0-9]*([0-9]+)"
    return {
        "kernels": program[program.index("ENTRY") :].count(" fusion("),
        "turns": [int(n) for n in re.findall(turns, program)],
        "temporary": made.memory_analysis().temp_size_in_bytes / (4 * ROWS * D),
        "instructions": dict(sorted(collections.Counter(_FLOAT.findall(code)).items())),
    }


def evaluation(precision: Precision, window: int, on: NamedSharding) -> dict[str, float]:
    """GB that the evaluation of a 7B model is planned to hold."""
    _, made = configs(CONFIG, "Llama-2-7b")
    model = nnx.eval_shape(
        lambda: Transformer(made.model, made.norm, made.placement, made.vocab_size)
    )
    place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on)  # noqa: E731
    given = {} if precision.plain else jax.eval_shape(lambda: unit_scales(model))
    text = windows(WINDOWS, window, made.vocab_size)
    shape = (default_batch(text, made.vocab_size), window)
    tokens, real = (jax.ShapeDtypeStruct(shape, kind, sharding=on) for kind in ("i4", "?"))
    plans = {}

    def planned(call: Any, graphdef: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
        args = precision, None, real, call, graphdef, *jax.tree.map(place, args)
        if (call, graphdef) not in plans:
            with tempfile.TemporaryDirectory() as dump:
                made = compiled(_layer.lower(*args), dump)
            plans[call, graphdef] = made.memory_analysis()
        return place(_layer.eval_shape(*args)[0]), {}

    ByLayer(model)(planned, [tokens], given, {})
    most = max(p.temp_size_in_bytes + p.output_size_in_bytes for p in plans.values())
    return {
        "windows": shape[0],
        "arguments_gb": sum(4 * leaf.size for leaf in jax.tree.leaves(model)) / 1e9,
        "temporary_gb": most / 1e9,
    }


def training(compute: ComputeConfig, on: NamedSharding) -> dict[str, float]:
    """GB that a step is planned to hold: parameters and AdamW's state, and what lives within it."""
    config = ModelConfig(
        layers=12, width=768, heads=12, max_length=1024, activation="gelu", gated=False,
        positions="learned",
    )  # fmt: skip
    norm = norms["layernorm"].Config(bias=False)
    model = nnx.eval_shape(lambda: Transformer(config, norm, PlacementConfig("pre"), 50_304))
    graphdef, params = nnx.split(model)
    optimizer = make_optimizer(AdamWConfig(), 1000, learned(params))
    state = jax.eval_shape(optimizer.init, learned(params))
    place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on)  # noqa: E731
    text = jax.ShapeDtypeStruct((12, 1024), jnp.int32, sharding=on)
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=on)
    step = make_step(graphdef, optimizer, 0, 1000, compute)
    state = jax.tree.map(place, (params, state))
    lowered = step.func.lower(*step.args, *state, number, text, text)
    with tempfile.TemporaryDirectory() as dump:
        plan = compiled(lowered, dump).memory_analysis()
    return {
        "arguments_gb": plan.argument_size_in_bytes / 1e9,
        "temporary_gb": plan.temp_size_in_bytes / 1e9,
    }


def main() -> None:
    """Compile, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="a JSON file")
    asked = parser.parse_args()
    jax.default_backend = lambda: "gpu"  # what normlab asks where it runs
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # there need be no CUDA to load
    devices = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
    )
    on = NamedSharding(topologies.make_mesh(devices, (1,), ("data",)), PartitionSpec())
    made = {
        f"{kind} {text}": norm(text, kind == "layernorm", on)
        for kind in ("rmsnorm", "layernorm")
        for text in NORMS
    }
    model = {text: evaluation(Precision.parse(text), 2048, on) for text in ("fp32", "fp16")}
    steps = {
        f"{dtype}{' remat' * remat}": training(
            ComputeConfig(dtype, attention="xla", remat=remat), on
        )
        for dtype in ("float32", "bfloat16")
        for remat in (False, True)
    }
    found = {"norms": made, "llama-2-7b": model, "124m": steps}
    keep(found | {"compiled_for": devices.devices[0].device_kind}, asked.out)


if __name__ == "__main__":
    main()
