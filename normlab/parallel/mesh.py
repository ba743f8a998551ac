"""The mesh of devices that a model is trained or evaluated on, and what must divide what."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType

from normlab.config import field, require
from normlab.parallel.distributed import require_devices
from normlab.parallel.sharding import shard_parameters


@dataclass(frozen=True)
class MeshConfig:
    """data × model devices: all that there are, or one."""

    data: int = field(1, "devices that a batch is divided over")
    model: int = field(1, "devices that heads, hidden elements and vocabulary are divided over")
    shard_parameters: bool = field(
        False, "divide weights and optimizer state over mesh.data too (fully sharded)"
    )

    def __post_init__(self) -> None:
        for name in ("data", "model"):
            value = getattr(self, name)
            require(value >= 1, f"mesh.{name} = {value}: expected a number ≥ 1 of devices")
        require(
            self.data > 1 or not self.shard_parameters,
            "mesh.shard_parameters = True divides weights over mesh.data = 1 device: expected "
            "mesh.data > 1",
        )

    def check_sizes(self, sizes: Mapping[str, int]) -> None:
        """Refuse a model whose `ModelConfig.divided_sizes` `mesh.model` doesn't divide."""
        for name, size in sizes.items():
            require(
                size % self.model == 0,
                f"mesh.model = {self.model} doesn't divide {name} = {size}; what divides heads, "
                f"key/value heads and hidden elements: {_common_divisors(sizes)}",
            )

    def check_batch(self, batch: int, accumulate: int) -> None:
        """Refuse a batch whose parts (`accumulate` of them) `mesh.data` doesn't divide."""
        least = self.data * accumulate
        require(
            self.data == 1 or batch % least == 0,
            f"mesh.data = {self.data} × accumulate = {accumulate} doesn't divide batch = {batch}; "
            f"the nearest that it divides is {max(1, round(batch / least)) * least}",
        )

    @contextmanager
    def use(self) -> Iterator[None]:
        """Everything inside runs on this mesh; with one device and one process, as ever.

        Raises:
            ValueError: data × model is neither 1 nor the number of devices.
        """
        require_devices()
        there, size = jax.device_count(), self.data * self.model
        if size == 1 and jax.process_count() == 1:
            yield
            return
        alone = jax.process_count() == 1
        several = f"; a CPU is {size} with XLA_FLAGS=--xla_force_host_platform_device_count={size}"
        require(
            size == there,
            f"mesh.data = {self.data} × mesh.model = {self.model} is {size} devices, there are "
            f"{there} in {jax.process_count()} process(es): expected all of them"
            + ", or 1" * alone
            + several * (alone and jax.default_backend() == "cpu"),
        )
        kinds = (AxisType.Auto,) * 2
        mesh = jax.make_mesh((self.data, self.model), ("data", "model"), axis_types=kinds)
        before = shard_parameters.set(self.shard_parameters)
        try:
            with jax.set_mesh(mesh):
                yield
        finally:
            shard_parameters.reset(before)

    def told(self) -> dict[str, Any]:
        """For a record: this layout, on which the last bits depend; {} for one device."""
        if self == MeshConfig():
            return {}
        return {"mesh": dataclasses.asdict(self) | {"processes": jax.process_count()}}


def _common_divisors(sizes: Mapping[str, int]) -> str:
    least = min(sizes.values())
    found = [n for n in range(1, least + 1) if all(s % n == 0 for s in sizes.values())]
    return ", ".join(map(str, found))
