"""Where each array lies on a mesh of devices: weights by their names, batches by rows.

All of it reads the mesh that `MeshConfig.use` has set, and does nothing without one.

| weight | over `model` | over `data`, where parameters are sharded |
| --- | --- | --- |
| query, key, value, gate, up: kernel [i, o] and bias [o] | o | kernel: i |
| out, down: kernel [i, o] | i | o |
| embed [v, d] | v where it divides, else d | the other axis |
| head [d, v] | v where it divides, else d | the other axis |
| other matrices (positions) | whole | the largest axis that divides |
| all else: norms, other biases, scalars | whole | whole |

An axis that the number of devices doesn't divide stays whole, and where `model` is 1 a matrix is
cut along the larger axis that divides. An optimizer's moments lie as their weights do, for their
names end alike. The split of heads and hidden elements is that of Megatron-LM (Shoeybi et al. 2019,
arXiv:1909.08053, section 3). The split over `data` is that of ZeRO's third stage (Rajbhandari et
al. 2020, arXiv:1910.02054, section 5). XLA's partitioner derives the communication.
"""

from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Float

shard_parameters: ContextVar[bool] = ContextVar("shard_parameters", default=False)
"""Whether weights are divided over `data` too; set by `MeshConfig.use`."""

_COLUMNS, _ROWS = ("query", "key", "value", "gate", "up"), ("out", "down")
_OVER_MODEL: dict[str, tuple[int, ...]] = {
    **{f"{name}.{part}": (-1,) for name in _COLUMNS for part in ("kernel", "bias")},
    **{f"{name}.kernel": (-2,) for name in _ROWS},
    "embed.embedding": (-2, -1),
    "head.kernel": (-1, -2),
}
"""By the end of a weight's name the axes that may lie over `model`, the first choice first."""

FREE = PartitionSpec.UNCONSTRAINED

Layout = tuple[Any, bool]
"""What this file reads beside arguments: the mesh, and whether parameters are divided."""


def layout() -> Layout:
    """That of now: a part of the key of what is compiled, for a trace under another is another."""
    return jax.sharding.get_mesh(), shard_parameters.get()


def dotted(path: Any) -> str:
    """The name of a leaf of a pytree: "blocks.0.attention.branch.query.kernel"."""
    # An nnx.Variable is a node with one child; whether its leaf has a step of its own in the path,
    # and what it is called, is flax's affair and not part of a name.
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")


def spec(
    name: str, shape: tuple[int, ...], data: int, model: int, parameters: bool
) -> PartitionSpec:
    """Over which mesh axis each axis of a weight is divided: the table above.

    Args:
        name: dotted, of a weight or of what an optimizer keeps for it.
        shape: of the whole array; axes before the last two (stacked layers) stay whole.
        data: devices on the mesh axis `data`.
        model: devices on the mesh axis `model`.
        parameters: divide matrices over `data` too.
    """
    axes: list[str | None] = [None] * len(shape)
    choices = _OVER_MODEL.get(".".join(name.split(".")[-2:]), ())
    fitting = [a for a in choices if len(shape) >= -a and shape[a] % model == 0]
    if fitting and model > 1:
        axes[fitting[0]] = "model"
    if parameters and name.rsplit(".", 1)[-1] in ("kernel", "embedding"):
        free = [a for a in (-2, -1) if axes[a] is None and shape[a] % data == 0]
        if free:
            axes[max(free, key=lambda a: shape[a])] = "data"
    return PartitionSpec(*axes)


def sharding(name: str, shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """Where a weight lies: on the mesh by `spec`, without a mesh on the first device."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return SingleDeviceSharding(jax.local_devices()[0])
    sizes = mesh.shape["data"], mesh.shape["model"]
    return NamedSharding(mesh, spec(name, shape, *sizes, shard_parameters.get()))


def shard_params(tree: Any) -> Any:
    """A pytree of weights, or of an optimizer's state, where its arrays belong.

    Inside a jitted function the arrays are constrained to lie there.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree_util.tree_map_with_path(lambda path, x: put(dotted(path), x), tree)


def put(name: str, x: Any) -> jax.Array:
    """One weight where it belongs."""
    if jax.sharding.get_abstract_mesh().empty:
        return jax.device_put(x)
    if isinstance(x, jax.core.Tracer):
        sizes = jax.sharding.get_abstract_mesh().shape
        axes = spec(name, x.shape, sizes["data"], sizes["model"], shard_parameters.get())
        return jax.lax.with_sharding_constraint(x, axes)
    where = sharding(name, np.shape(x))
    return _from_host(x, where) if isinstance(x, np.ndarray) else jax.device_put(x, where)


def shard_batch(*arrays: Any) -> tuple[Any, ...]:
    """A batch's arrays, each device given its part of the first axis.

    Every process has them whole, or as something (`normlab.data.batches.Rows`) that reads the part
    which is asked for. Rows that `data` doesn't divide go to all devices.
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return tuple(map(np.asarray, arrays))
    whole = len(arrays[0]) % mesh.shape["data"] != 0
    where = NamedSharding(mesh, PartitionSpec() if whole else PartitionSpec("data"))
    return tuple(_from_host(a, where) for a in arrays)


def _from_host(x: Any, where: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(x.shape, where, lambda part: x[part])


def padded_rows(size: int) -> int:
    """The least number of rows ≥ `size` that `data` divides."""
    mesh = jax.sharding.get_mesh()
    parts = 1 if mesh.empty else mesh.shape["data"]
    return -(-size // parts) * parts


def whole_rows(x: Float[Array, "b *others d"]) -> Float[Array, "b *others d"]:
    """In a jitted function: `x`, the batch divided over `data` and no row cut.

    What a norm sums over lies on one device, so that a sum has the bits that one device gives it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    batch = "data" if x.shape[0] % mesh.shape["data"] == 0 else FREE
    between = [FREE] * (x.ndim - 2)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(batch, *between, None))


def replicate(tree: Any) -> Any:
    """In a jitted function: results that each process can fetch, the same on all devices."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def on_host(x: Any) -> np.ndarray:
    """An array on this host, its parts on other hosts fetched (then all processes must call it)."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
