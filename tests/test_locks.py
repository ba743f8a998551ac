"""The lock of a file: held by one, given back, and had where the file system has none."""

import errno
import fcntl
import os
import threading

import pytest

from normlab import locks
from normlab.locks import HeldError, locked


@pytest.fixture(params=[None, *locks.NONE_HERE], ids=lambda n: errno.errorcode.get(n, "flock"))
def file_system(request, monkeypatch):
    """One with locks, and those that have none."""
    if request.param is not None:

        def flock(*_):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", flock)


pytestmark = pytest.mark.filterwarnings("ignore:flock not supported")


def test_one_holds_it_and_gives_it_back(file_system, tmp_path):
    with (
        locked(tmp_path / "a"),
        pytest.raises(HeldError, match=r"another process.*remove the file"),
        locked(tmp_path / "a", wait=False),
    ):
        pass
    with pytest.raises(KeyError), locked(tmp_path / "a"):
        raise KeyError
    with locked(tmp_path / "a", wait=False):
        pass


def test_who_waits_says_so_and_gets_it(file_system, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    order = []

    def second():
        with locked(tmp_path / "a"):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path / "a"):
        thread.start()
        while "waiting" not in caplog.text:
            thread.join(0.05)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert str(tmp_path / "a") in caplog.text


@pytest.mark.parametrize("number", locks.NONE_HERE, ids=errno.errorcode.get)
def test_what_a_dead_node_left_is_named(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "a"):
        (file,) = (p for p in tmp_path.iterdir() if p.stat().st_size)
        left = file.read_text()
    here = os.uname().nodename
    assert here in left
    file.write_text(left.replace(here, "another-node"))
    with pytest.raises(HeldError, match=f"{file} is held.*remove"), locked(tmp_path / "a", False):
        pass
    file.unlink()
    with locked(tmp_path / "a", wait=False):
        pass
