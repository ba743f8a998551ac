"""A norm in a file of one's own, on both commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from normlab.results import RecordFile
from tests.support.own_norm import OWN

pytestmark = pytest.mark.system
ROOT = Path(__file__).parent.parent.parent
SMALL = [
    "model=tiny", "data=embedded", "data.vocab_size=300", "steps=6", "optimizer.warmup=1",
    "batch=2", "window=16", "eval_windows=2",
]  # fmt: skip


def run(app, *arguments):
    command = [sys.executable, "-m", app, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_it_is_swept_evaluated_and_refused_once_it_is_edited(tmp_path):
    file, runs = tmp_path / "my_norms.py", f"runs={tmp_path}/runs"
    file.write_text(OWN)
    mine, out = f"imports=[{file}]", f"out={tmp_path}/out"
    done = run("train", "-m", mine, "norm=own,rmsnorm", runs, *SMALL)
    assert done.returncode == 0, done.stderr
    (own,) = (tmp_path / "runs").glob("own-pre-*")
    assert (own / "imports" / "my_norms.py").read_text() == OWN

    unnamed = run("evaluate", f"run={own}", out, "max_windows=2")
    assert unnamed.returncode == 2
    assert "was trained with imports=[my_norms.py]" in unnamed.stderr
    done = run("evaluate", mine, runs, out, "max_windows=2", "precision=fp32")
    assert done.returncode == 0, done.stderr
    assert "own-pre-" in done.stdout
    assert "unreadable" not in done.stdout

    file.write_text(OWN.replace("1e-6", "1e-4"))
    edited = run("evaluate", mine, f"run={own}", out, "max_windows=2")
    assert edited.returncode == 2
    assert "the source of norm=own: not what" in edited.stderr
    allowed = run("evaluate", mine, f"run={own}", out, "max_windows=2", "allow_changed_source=true")
    assert allowed.returncode == 0, allowed.stderr
    *_, last = RecordFile(tmp_path / "out" / "records.jsonl").read()
    assert "the source of norm=own has changed since" in last.model.note
