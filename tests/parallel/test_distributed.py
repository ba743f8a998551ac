import os
import socket
from types import SimpleNamespace

import jax
import pytest

from normlab.parallel.distributed import (
    HostsConfig,
    agreed_maximum,
    is_main_process,
    joined_processes,
    on_main_process,
    private_copy,
    require_devices,
)
from normlab.parallel.mesh import MeshConfig
from tests.support.parallel_runs import done, same, start, trained


@pytest.mark.parametrize("error", [RuntimeError("Unable to begin (set X)"), AssertionError()])
def test_a_backend_that_is_not_here_is_named(monkeypatch, error):
    def fails():
        raise error

    monkeypatch.setattr(jax, "devices", fails)
    with pytest.raises(type(error)):  # nobody asked for one
        require_devices()
    monkeypatch.setitem(jax.config._value_holders, "jax_platforms", SimpleNamespace(value="cuda"))
    for enter in (joined_processes(HostsConfig()), MeshConfig().use()):
        with pytest.raises(ValueError, match="JAX_PLATFORMS=cuda: JAX can't begin there"), enter:
            pass


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 2}, "hosts.count = 2 mean nothing with hosts.coordinator = None"),
        ({"coordinator": "auto", "process": 0}, "mean nothing with hosts.coordinator = auto"),
        ({"coordinator": "here"}, "hosts.coordinator = 'here': expected auto or HOST:PORT"),
        ({"coordinator": "a:1", "process": 0}, "hosts.process = 0, hosts.count = None: beside"),
        ({"coordinator": "a:1", "process": 2, "count": 2}, "and 0 ≤ process < count"),
    ],
)
def test_bad_values_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        HostsConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"coordinator": "auto"}, "hosts.coordinator=auto .neither Slurm nor"),
        (
            {"coordinator": "127.0.0.1:1", "process": 0, "count": 1},
            "hosts.coordinator=127.0.0.1:1 hosts.process=0 hosts.count=1: the processes did not",
        ),
    ],
)
def test_processes_that_do_not_come_together_are_named(fields, named):
    jax.devices()  # after this jax.distributed refuses to begin
    with pytest.raises(ValueError, match=named), joined_processes(HostsConfig(**fields)):
        pass


def test_one_process_is_the_first_and_decides_alone(tmp_path, capsys):
    with joined_processes(HostsConfig()):
        print("heard")
    assert is_main_process()
    assert capsys.readouterr().out == "heard\n"
    assert agreed_maximum(15, due=False) == 15
    assert agreed_maximum(None) is None
    with private_copy(tmp_path / "here", "checkpoints") as directory:
        assert directory == tmp_path / "here"


def test_an_error_of_the_first_process_is_raised():
    with pytest.raises(KeyError, match="gone"):
        on_main_process(lambda: {}["gone"])


def slurm_job():
    """The number of a job for which JAX picks a port (61440 + its last 12 bits) that is free."""
    for number in range(os.getpid(), os.getpid() + 4096):
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", 61440 + number % 4096))
            except OSError:
                continue
            return number
    raise AssertionError("no port is free")


@pytest.mark.extended
def test_processes_that_slurm_starts_find_each_other(tmp_path):
    """As `srun --ntasks=2` would start them on one node, without Slurm: by its variables."""
    shared = {"JOB_ID": slurm_job(), "STEP_NODELIST": "127.0.0.1", "STEP_NUM_NODES": 1, "NTASKS": 2}
    fields = {"mesh": {"data": 2}, "hosts": {"coordinator": "auto"}}
    job = {"directory": str(tmp_path / "two"), **fields}
    processes = []
    for process in range(2):
        told = shared | {"PROCID": process, "LOCALID": process}
        slurm = {f"SLURM_{name}": str(value) for name, value in told.items()}
        processes.append(start(1, ("trained", job), **slurm))
    (((is_main_process,), printed), ((second,), silence)) = (done(process) for process in processes)
    assert is_main_process == second
    assert printed
    assert not silence
    assert [layout["processes"] for layout in is_main_process["layouts"]] == [2]
    same(is_main_process, trained(tmp_path / "one"))
