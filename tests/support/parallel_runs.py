"""What the tests of parallel runs run in processes of their own: `python parallel_runs.py JOB …`.

A job is a function of this file and its arguments, as JSON; what it returns is printed as JSON.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[2]

MODEL = {"layers": 1, "width": 32, "heads": 4, "hidden": 64, "max_length": 32, "dropout": 0.1}
FP8 = "fp8_e4m3:sequential"  # out of whose range some rows are
PRECISIONS = ["fp32", FP8, *(f"{FP8}+{rule}" for rule in ("slanc", "moments", "calibrated"))]


def start(devices, *jobs, **environment):
    """A process of so many virtual CPU devices; a job is (function, its arguments)."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, __file__, *(json.dumps(job) for job in jobs)],
        env=os.environ
        | {"XLA_FLAGS": flags, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process, timeout=600):
    """What its jobs returned, in order, and the lines that they printed."""
    out, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors[-3000:]
    lines = out.splitlines()
    printed = [line for line in lines if not line.startswith(("{", "[Gloo]"))]
    return [json.loads(line) for line in lines if line.startswith("{")], printed


def free_address():
    """An address of this machine at which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def trained(directory, stop_after=None, **fields):
    """A run of six steps: what it logged and saved, and its sessions' layouts."""
    from normlab.runs.checkpoint import Checkpoints
    from normlab.training.trainer import train
    from tests.support.runs import tiny_config

    values = {"model": MODEL, "steps": 6, "eval_every": 3, "window": 16, "batch": 8}
    config = tiny_config("unused", run=str(directory), **(values | fields))
    saved, save = {}, Checkpoints.save

    def noted(checkpoints, step, **given):
        saved[str(step)] = digests({name: given[name] for name in ("params", "optimizer")})
        save(checkpoints, step, **given)

    with patch.object(Checkpoints, "save", noted):
        run = train(config, stop_after=stop_after)
    losses = {f"{r['step']} {k}": r[k] for r in run.metrics for k in r if k.endswith("loss")}
    sessions = run.read("provenance.json").get("sessions", [])
    layouts = [s.get("mesh") for s in sessions]
    return {"directory": str(directory), "losses": losses, "layouts": layouts, "saved": saved}


def digests(trees):
    """The bits of each array of pytrees, as the beginning of a SHA-256."""
    from normlab.parallel.sharding import on_host
    from normlab.runs.names import to_names

    arrays = {name: on_host(leaf) for name, leaf in to_names(trees).items()}
    return {name: hashlib.sha256(x.tobytes()).hexdigest()[:16] for name, x in arrays.items()}


def newest(directory, **fields):
    """A trainer in a layout of its own, gone on from a run's newest checkpoint."""
    from normlab.config import build
    from normlab.data import load_tokens
    from normlab.runs.checkpoint import Checkpoints
    from normlab.runs.run import Run
    from normlab.training.config import TrainConfig
    from normlab.training.trainer import Trainer

    run = Run(directory)
    values = run.read("config.yaml") | {"mesh": {}, "hosts": {}} | fields
    config = build(TrainConfig, values)
    with config.mesh.use(), Checkpoints(run["checkpoints"]) as checkpoints:
        trainer = Trainer(config, load_tokens(config.data), run)
        trainer._restore(checkpoints)
        return trainer


def restored(directory, **fields):
    """The bits of a run's newest checkpoint in a layout, and how many arrays that one divides."""
    import jax

    trainer = newest(directory, **fields)
    leaves = jax.tree.leaves(trainer.params)
    shard_batch = sum(x.addressable_shards[0].data.shape != x.shape for x in leaves)
    return {"bits": digests(trainer._saved()), "divided": shard_batch}


def parameters(directory):
    """The parameters of a run's newest checkpoint by name, on one device."""
    from normlab.runs.names import to_names

    return to_names(newest(directory)._saved()["params"])


def same(run, other):
    """That two runs came to the same losses and weights, to float tolerance."""
    import numpy as np

    assert run["losses"].keys() == other["losses"].keys()
    assert len(run["losses"]) == 9  # six steps, three validations
    for name, loss in run["losses"].items():
        np.testing.assert_allclose(loss, other["losses"][name], rtol=1e-5, err_msg=name)
    ends, others = (parameters(r["directory"]) for r in (run, other))
    assert ends.keys() == others.keys()
    for name, values in ends.items():
        np.testing.assert_allclose(values, others[name], rtol=0, atol=1e-5, err_msg=name)


def removed(directory, **fields):
    """A removal from a run, three steps after each site: the numbers of its lines by site."""
    from normlab.config import build
    from normlab.training.removal import RemoveConfig, remove

    values = {"run": str(directory), "steps": 3, "batch": 8, "eval_windows": 8}
    lines = remove(build(RemoveConfig, values | fields))
    found = {line.site: [line.factor, line.frozen, line.tuned] for line in lines}
    return {site: [n for n in numbers if n is not None] for site, numbers in found.items()}


def evaluated(model, out, **fields):
    """A pretrained model's records, without what names a machine or a moment."""
    from normlab.config import build
    from normlab.evaluation import evaluate
    from normlab.evaluation.config import EvaluateConfig

    values = {
        "pretrained": model,
        "out": str(out),
        "precision": PRECISIONS,
        "data": {"corpus": "embedded"},
        "window": 32,
        "max_windows": 5,
        "batch": 2,
        "compare": True,
    }
    records = evaluate(build(EvaluateConfig, values | fields))
    kept = ("perplexity", "overflowed_rows", "rows", "weights_sha256", "kl_mean", "top1_agreement")
    return {
        r.precision: {name: r.flat()[name] for name in kept}
        | {"window_nll": r.result.window_nll, "sites": r.ranges.sites}
        for r in records
    }


def normed(kind, width):
    """By precision, whether a norm of rows that come in pieces on 2 × 2 devices keeps its bits."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from normlab.model import Context
    from normlab.norms import Site, norms
    from normlab.numerics import Precision
    from normlab.parallel.mesh import MeshConfig

    norm = norms[kind](width, Site("sub_norm", "here"), norms[kind].Config())
    x = (np.random.default_rng(0).standard_normal((4, 6, width)) * 30).astype(np.float32)

    def bits(precision, x):
        def call(x):
            context = Context(Precision.parse(precision), {"here": jnp.float32(3)}, observe=True)
            return context.norm(norm, x), context.observed["here"].overflowed

        return jax.tree.map(np.asarray, jax.jit(call)(x))

    same = {}
    for precision in ("fp32", "fp16:pairwise", "fp16:sequential", "bf16:lanes8"):
        alone = bits(precision, x)
        with MeshConfig(data=2, model=2).use():
            where = NamedSharding(jax.sharding.get_mesh(), PartitionSpec("data", None, "model"))
            y, lost = bits(precision, jax.device_put(x, where))
        same[precision] = bool((y == alone[0]).all() and lost == alone[1])
    return same


def batches(rows):
    """On 2 × 2 devices, for so many rows: the next number that `data` divides, a device's part."""
    import numpy as np

    from normlab.parallel.mesh import MeshConfig
    from normlab.parallel.sharding import on_host, padded_rows, shard_batch

    found = {}
    with MeshConfig(data=2, model=2).use():
        for count in rows:
            given = np.arange(3.0 * count).reshape(count, 3)
            (x,) = shard_batch(given)
            assert np.array_equal(on_host(x), given)
            found[count] = padded_rows(count), x.addressable_shards[0].data.shape
    return found


def laid_out(model):
    """Of a pretrained model on 2 × 2 devices, parameters divided: each weight's shape on one."""
    import jax
    from flax import nnx

    from normlab.parallel.mesh import MeshConfig
    from normlab.pretrained import load
    from normlab.runs.names import to_names

    with MeshConfig(data=2, model=2, shard_parameters=True).use():
        weights = to_names(nnx.state(load(model).model))
        assert all(isinstance(w, jax.Array) for w in weights.values())
        return {name: w.addressable_shards[0].data.shape for name, w in weights.items()}


if __name__ == "__main__":
    for job, arguments in map(json.loads, sys.argv[1:]):
        print(json.dumps(globals()[job](**arguments)), flush=True)
