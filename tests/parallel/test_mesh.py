import jax
import pytest

from normlab.config import to_dict
from normlab.model import ModelConfig
from normlab.parallel.mesh import MeshConfig
from normlab.training.identity import identity
from tests.support.runs import tiny_config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": 0}, "mesh.data = 0: expected a number ≥ 1 of devices"),
        ({"model": -1}, "mesh.model = -1"),
        ({"shard_parameters": True}, "divides weights over mesh.data = 1 device"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MeshConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"heads": 6}, "heads = 6"),
        ({"kv_heads": 2}, "kv_heads = 2"),
        ({"hidden": 90}, "hidden = 90"),
    ],
)
def test_what_the_devices_do_not_divide_is_refused(fields, what):
    model = ModelConfig(**({"width": 96, "heads": 8, "hidden": 256} | fields))
    MeshConfig(data=7).check_sizes(model.divided_sizes)
    with pytest.raises(ValueError, match=f"mesh.model = 4 doesn't divide model.{what}; .*: 1, 2$"):
        MeshConfig(model=4).check_sizes(model.divided_sizes)


def test_a_batch_is_divided_evenly_in_each_of_its_parts():
    tiny_config("runs", batch=12, accumulate=3, mesh={"data": 4})
    with pytest.raises(ValueError, match="4 × accumulate = 2 doesn't divide batch = 12"):
        tiny_config("runs", batch=12, accumulate=2, mesh={"data": 4})
    with pytest.raises(ValueError, match="the nearest that it divides is 16"):
        tiny_config("runs", batch=15, mesh={"data": 4})
    with pytest.raises(ValueError, match="mesh.model = 3 doesn't divide model.heads = 2"):
        tiny_config("runs", mesh={"model": 3})


def test_a_mesh_of_other_devices_than_there_are_is_refused():
    there = jax.device_count()
    flag = rf"XLA_FLAGS=--xla_force_host_platform_device_count={3 * there}"
    message = rf"is {3 * there} devices, there are {there} in 1 process.* a CPU is .* {flag}"
    with pytest.raises(ValueError, match=message), MeshConfig(data=3 * there).use():
        pass


def test_one_device_is_no_mesh_and_is_not_told_of():
    with MeshConfig().use():
        assert jax.sharding.get_mesh().empty
    assert MeshConfig().told() == {}
    told = MeshConfig(data=2, model=4).told()["mesh"]
    assert told == {"data": 2, "model": 4, "shard_parameters": False, "processes": 1}


def test_the_layout_is_not_part_of_a_runs_identity():
    hosts = {"coordinator": "here:1", "process": 1, "count": 2}
    there = tiny_config("runs", mesh={"data": 2, "shard_parameters": True}, hosts=hosts)
    here = tiny_config("runs")
    assert identity(to_dict(there), "text") == identity(to_dict(here), "text")
