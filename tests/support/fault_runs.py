"""What the tests of faults run in processes of their own: `python fault_runs.py JOB DIRECTORY …`.

A job returns what it saw, which is printed as a line of JSON. The jobs on a disk mount one, and so
run under `unshare -rm`: nobody else sees that disk, and it is gone with the process.
"""

import contextlib
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRIVATE = ["unshare", "--user", "--map-root-user", "--mount"]

TINY = (
    "model.layers=2", "model.width=32", "model.heads=2", "model.max_length=64", "data=embedded",
    "data.vocab_size=300", "optimizer.lr=1e-2", "optimizer.warmup=2", "steps=12", "batch=4",
    "window=32", "eval_every=4", "eval_windows=4", "log_every=1",
)  # fmt: skip
"""`tiny_config` as a command line."""


def command(directory, *overrides):
    """`python -m train` of the tiny run, in `directory`."""
    return [sys.executable, "-m", "train", *TINY, *overrides, f"run={directory}"]


def job(name, *arguments, before=()):
    """A job's process, ended."""
    return subprocess.run(
        [*before, sys.executable, __file__, name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def mounts():
    """Whether this machine lets a user mount a disk of their own."""
    try:
        return subprocess.run([*PRIVATE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def on_disk(name, directory):
    """What a job on a disk saw."""
    done = job(name, directory, before=PRIVATE)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]) | {"stderr": done.stderr}


def commanded(directory):
    """The command in this process, which has loaded JAX already: exit status, what it printed."""
    said = io.StringIO()
    sys.argv = command(directory)[2:]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_module("train", run_name="__main__")
            return 0, said.getvalue()
        except SystemExit as end:
            return end.code, said.getvalue()


def struck(directory, fault, mend):
    """A run to which `fault` happens once step 4 is saved, tried again as it is, and then mended.

    Returns:
        Each call's status and words, the record after the first, and the checkpoints then.
    """
    from normlab.runs.run import Run
    from normlab.training.trainer import Trainer

    note, run = Trainer._note, Run(directory)

    def noted(self, progress, step, metrics):
        if step == 6:
            while not (run["checkpoints"] / "4").exists():
                time.sleep(0.01)
            fault()
        note(self, progress, step, metrics)

    Trainer._note = noted
    calls = [commanded(directory)]
    Trainer._note = note
    record, kept = run.record, sorted(p.name for p in run["checkpoints"].iterdir())
    calls.append(commanded(directory))
    mend()
    calls.append(commanded(directory))
    return {"calls": calls, "record": record, "kept": kept}


def mount(*arguments):
    subprocess.run(["mount", *map(str, arguments)], check=True)


def filled(file, left=0):
    """Fill the file system up, but for `left` bytes."""
    with open(file, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
    os.truncate(file, max(file.stat().st_size - left, 0))


def full(directory):
    """A file system of 8 MB, on which 64 kB are left: less than a checkpoint takes."""
    disk = directory / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "none", disk)
    filler = disk / "filler"
    seen = struck(disk / "run", lambda: filled(filler, left=64 << 10), filler.unlink)
    return seen | {"line": half_line(disk)} | ended(disk / "run", directory)


def half_line(disk):
    """Lines until the disk is full: the error, the torn end, and whether a rewind mends it."""
    from normlab.training.metrics import StepLines

    path, filler = disk / "metrics.jsonl", disk / "filler"
    lines, step = StepLines(path), 0
    filled(filler, left=8 << 10)
    try:
        while True:
            lines.append({"step": step, "loss": 1 / 3})
            step += 1
    except OSError as error:
        seen = {"said": str(error), "torn": not path.read_text().endswith("\n")}
    filler.unlink()
    lines.rewind(step)
    lines.append({"step": step})
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    return seen | {"mended": steps == list(range(step + 1))}


def readonly(directory):
    """A directory over which a read-only mount of itself is laid, and taken away again."""
    disk, veil = directory / "disk", directory / "veil"
    disk.mkdir()
    veil.mkdir()
    mount("--bind", disk, veil)
    mount("-o", "remount,bind,ro", veil)
    seen = struck(
        disk / "run",
        lambda: mount("--bind", veil, disk),
        lambda: subprocess.run(["umount", str(disk)], check=True),
    )
    return seen | ended(disk / "run", directory)


def ended(run, outside):
    """Where a copy of a run lies that is seen outside of the mount."""
    return {"ended": str(shutil.copytree(run, outside / "ended"))}


def killed_in_save(directory, when):
    """The tiny run, validated at each step, killed in its second save of this process.

    Args:
        directory: the run's.
        when: so many seconds after the save has begun, with which training waits; or "rename",
            just before the rename that makes the checkpoint one; or "renamed", just after it.
    """
    from normlab.runs.checkpoint import Checkpoints
    from normlab.training.trainer import train
    from tests.support.runs import tiny_config

    save, saves = Checkpoints.save, []

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def saved(self, step, *trees, **more):
        saves.append(step)
        if len(saves) == 2 and when.startswith("rename"):
            at_rename(Path(directory, "checkpoints", str(step)), when == "renamed", kill)
        save(self, step, *trees, **more)
        if len(saves) == 2 and not when.startswith("rename"):
            time.sleep(float(when))
            kill()

    Checkpoints.save = saved
    train(tiny_config("unused", run=str(directory), eval_every=1))


def at_rename(target, after, act):
    """Act when Python is about to rename something to `target`, or (after) at what it does next."""
    seen = []

    def hook(event, arguments):
        if len(seen) == 1 and target.exists():
            seen.append(event)  # what acts is heard of here, too
            act()
        if event == "os.rename" and os.fspath(arguments[1]) == str(target):
            seen.append(event)
            if not after:
                act()

    sys.addaudithook(hook)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    name, where, *more = sys.argv[1:]
    print(json.dumps(globals()[name](Path(where), *more)))
