"""3,000 damaged checkpoints: refused in words, or read as another reader reads them."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.support.command_line import ROOT
from tests.support.fuzzed_checkpoints import KINDS

EACH = 600


def fuzz(kind, first):
    """[number, outcome, why] of each mutation from one on, until one ends the process."""
    command = [sys.executable, "-m", "tests.support.fuzzed_checkpoints"]
    done = subprocess.run(
        [*command, kind, str(first), str(EACH - first)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"RUST_BACKTRACE": "0"},
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = [line for line in lines if isinstance(line, list)]
    if len(found) < EACH - first:
        assert lines, done.stderr[-2000:]
        found.append([lines[-1], "fault", f"ended by {done.returncode}: {done.stderr[-500:]}"])
    return found


@pytest.mark.extended
@pytest.mark.parametrize("kind", KINDS)
def test_no_traceback_no_hang_and_no_other_weights(kind):
    found = []
    while len(found) < EACH:
        found += fuzz(kind, len(found))
    figures = Counter(word for _, word, _ in found)
    print(kind, dict(figures))
    assert [line for line in found if line[1] == "fault"] == []
    assert figures["refused"] > EACH / 4
    assert figures["equal"] + figures["changed"] > EACH / 20
