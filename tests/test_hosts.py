import jax
import pytest

from normlab.hosts import HostsConfig, agreed, by_first, first, joined, own


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
    with pytest.raises(ValueError, match=named), joined(HostsConfig(**fields)):
        pass


def test_one_process_is_the_first_and_decides_alone(tmp_path, capsys):
    with joined(HostsConfig()):
        print("heard")
    assert first()
    assert capsys.readouterr().out == "heard\n"
    assert agreed(15, due=False) == 15
    assert agreed(None) is None
    with own(tmp_path / "here", "checkpoints") as directory:
        assert directory == tmp_path / "here"


def test_an_error_of_the_first_process_is_raised():
    with pytest.raises(KeyError, match="gone"):
        by_first(lambda: {}["gone"])
