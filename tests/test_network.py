"""Nothing contacts a network by default: training and evaluation with every socket watched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_wikitext import REAL

ROOT = Path(__file__).parent.parent

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
    "steps=2", "optimizer.warmup=1", "eval_windows=2", "watch_every=1",
]  # fmt: skip


def watched(where, command, *arguments, **environment):
    """What a command run in an environment of its own asked of the network, and how it ended."""
    dropped = ("HF_", "NORMLAB_", "HUGGINGFACE_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    heard = where / "heard"
    own = {"HEARD": str(heard), "HOME": str(where), "NORMLAB_CACHE": str(where / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, command, *arguments],
        cwd=ROOT, env=kept | own | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return heard.read_text().splitlines() if heard.exists() else [], done


def test_training_and_evaluation_ask_no_network(tmp_path):
    run = f"run={tmp_path}/run"
    heard, done = watched(tmp_path, "train", "data=embedded", "data.vocab_size=300", run, *SMALL)
    assert done.returncode == 0, done.stderr
    assert heard == []
    asked = [f"checkpoint={tmp_path}/run", "max_windows=2", f"out={tmp_path}/results"]
    heard, done = watched(tmp_path, "evaluate", *asked)
    assert done.returncode == 0, done.stderr
    assert heard == []


@REAL
def test_a_text_that_is_on_the_machine_is_not_asked_for(tmp_path):
    text = os.environ["NORMLAB_DATA"]
    run = f"run={tmp_path}/run"
    heard, done = watched(tmp_path, "train", run, *SMALL, NORMLAB_DATA=text)
    assert done.returncode == 0, done.stderr
    assert '"name": "wikitext2"' in (tmp_path / "run" / "provenance.json").read_text()
    assert heard == []


@pytest.mark.slow
def test_a_question_to_the_hub_is_heard(tmp_path):
    """The watch itself: `data=auto` without the text asks the hub, here a closed port."""
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    heard, done = watched(tmp_path, "train", f"run={tmp_path}/run", *SMALL, **hub)
    assert done.returncode == 0, done.stderr
    assert any("127.0.0.1" in line for line in heard)
