"""Nothing contacts a network by default: training and evaluation with every socket watched.

Two ears: an audit hook, which hears Python's own sockets, and the kernel's count of what was to
leave a network namespace that has no way out, which hears the programs that trackers start too.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.runs.run import Run

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parent.parent.parent

# Python tells an audit hook of each connection and each name looked up before it happens.
WATCHED = """
import os, runpy, sys

def heard(event, values):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        with open(os.environ["HEARD"], "a") as file:
            print(event, *values, file=file)

sys.addaudithook(heard)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
SMALL = [
    "model.layers=1", "model.width=16", "model.heads=1", "window=32", "batch=2",
    "steps=2", "optimizer.warmup=1", "eval_windows=2", "diagnostics_every=1",
]  # fmt: skip
ALONE = ["unshare", "--user", "--map-root-user", "--net"]


def started(where, command, **environment):
    """How a command ended that was run in an environment of its own."""
    dropped = ("HF_", "NORMLAB_", "HUGGINGFACE_", "WANDB_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    own = {"HOME": str(where), "NORMLAB_CACHE": str(where / "cache")}
    return subprocess.run(
        command, cwd=ROOT, env=kept | own | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def watched(where, command, *arguments, **environment):
    """What a command asked of the network by Python's sockets, and how it ended."""
    heard, python = where / "heard", [sys.executable, "-c", WATCHED, command]
    done = started(where, [*python, *arguments], HEARD=str(heard), **environment)
    return heard.read_text().splitlines() if heard.exists() else [], done


def unrouted(where, *command):
    """What a command and all that it starts would have sent, and how it ended.

    In a fresh namespace nothing has a route, not even 127.0.0.1, and each attempt is counted: by
    IPv4, which a look-up of a name uses too.
    """
    count = '"$@" >&2; status=$?; cat /proc/net/snmp; exit $status'
    done = started(where, [*ALONE, "sh", "-c", count, "sh", *command])
    names, numbers = (v.split() for v in done.stdout.splitlines() if v.startswith("Ip:"))
    return int(dict(zip(names, numbers, strict=True))["OutNoRoutes"]), done


def no_namespaces():
    """Whether this machine gives a user no network namespace."""
    if shutil.which(ALONE[0]) is None:
        return True
    return subprocess.run([*ALONE, "true"], capture_output=True).returncode != 0


needs_namespaces = pytest.mark.skipif(no_namespaces(), reason="`unshare -rn` is not allowed here")


def test_training_and_evaluation_ask_no_network(tmp_path):
    run = f"run={tmp_path}/run"
    heard, done = watched(tmp_path, "train", "data=embedded", "data.vocab_size=300", run, *SMALL)
    assert done.returncode == 0, done.stderr
    assert heard == []
    asked = [f"run={tmp_path}/run", "max_windows=2", f"out={tmp_path}/results"]
    heard, done = watched(tmp_path, "evaluate", *asked)
    assert done.returncode == 0, done.stderr
    assert heard == []


@pytest.mark.skipif("NORMLAB_DATA" not in os.environ, reason="NORMLAB_DATA is not set")
def test_a_text_that_is_on_the_machine_is_not_asked_for(tmp_path):
    text = os.environ["NORMLAB_DATA"]
    run = f"run={tmp_path}/run"
    heard, done = watched(tmp_path, "train", run, *SMALL, NORMLAB_DATA=text)
    assert done.returncode == 0, done.stderr
    assert '"name": "wikitext2"' in (tmp_path / "run" / "provenance.json").read_text()
    assert heard == []


def test_a_question_to_the_hub_is_heard(tmp_path):
    """The watch itself: `data=auto` without the text asks the hub, here a closed port."""
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    heard, done = watched(tmp_path, "train", f"run={tmp_path}/run", *SMALL, **hub)
    assert done.returncode == 0, done.stderr
    assert any("127.0.0.1" in line for line in heard)


ASKS = """
import socket
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    asking.sendto(b"anyone?", ("192.0.2.1", 53))
except OSError as error:
    print(error)
asking.close()
"""


@needs_namespaces
def test_what_a_program_would_send_is_counted(tmp_path):
    """The count itself, asked by a program that another one starts, as wandb's does."""
    starts = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True)"
    asked, done = unrouted(tmp_path, sys.executable, "-c", starts, "-c", ASKS)
    assert done.returncode == 0, done.stderr
    assert asked == 1


@needs_namespaces
@pytest.mark.parametrize(
    ("tracker", "package", "files"),
    [
        ("tensorboard", "tensorboardX", "run/tensorboard/events.out.tfevents.*"),
        ("wandb", "wandb", "run/wandb/offline-run-*/*.wandb"),
    ],
)
def test_trackers_ask_no_network(tmp_path, tracker, package, files):
    pytest.importorskip(package, reason=f"normlab[{tracker}] is missing")
    run = ["data=embedded", "data.vocab_size=300", f"run={tmp_path}/run", f"tracking=[{tracker}]"]
    asked, done = unrouted(tmp_path, sys.executable, "-m", "train", *run, *SMALL)
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "run").record["state"] == "finished"
    (written,) = tmp_path.glob(files)
    assert written.stat().st_size > 1000  # more than a file's head
    assert asked == 0
