"""Runs that end after a few seconds, what they leave, and runs of which only the loop is real."""

import signal
from itertools import chain, repeat

from normlab.config import build
from normlab.data import load_tokens
from normlab.runs.checkpoint import Checkpoints
from normlab.training.config import TrainConfig
from normlab.training.trainer import Trainer
from tests.conftest import TINY, same_trees


def tiny_config(runs, **fields):
    """A training config on the embedded text that ends after a few seconds."""
    values = {
        "model": TINY,
        "data": {"corpus": "embedded", "vocab_size": 300},
        "optimizer": {"lr": 1e-2, "warmup": 2},
        "steps": 12,
        "batch": 4,
        "window": 32,
        "eval_every": 4,
        "eval_windows": 4,
        "log_every": 1,
        "runs": str(runs),
    }
    return build(TrainConfig, values | fields)


def loop_config(runs, **fields):
    """The tiny run with one block: fewer arrays to save where the run is `scripted`."""
    return tiny_config(runs, **{"model": TINY | {"layers": 1}} | fields)


def saved(config, *points):
    """Of each (run, step) the parameters and the optimizer's state in that checkpoint."""
    like, found = Trainer(config, load_tokens(config.data), points[0][0]), []
    for run, step in points:
        with Checkpoints(run["checkpoints"]) as checkpoints:
            found.append(checkpoints.load(step, params=like.params, optimizer=like.state))
    return found


def same_ends(a, b, config):
    """Whether two runs have come to the last step with the same bits."""
    for run in (a, b):
        with Checkpoints(run["checkpoints"]) as checkpoints:
            if checkpoints.latest() != config.steps:
                return False
    return same_trees(*saved(config, (a, config.steps), (b, config.steps)))


def logged(run):
    """What a run logged, but for times."""
    timing = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in row.items() if k not in timing} for row in run.metrics]


def largest(where):
    """The largest file in a folder: of a checkpoint's, the one with the numbers."""
    return max((f for f in where.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def flipped(where, tree="optimizer"):
    """Flip a bit of a tree in a checkpoint."""
    file = largest(where / tree)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw))


def unlisted(where):
    """Cut a checkpoint's metrics short."""
    (where / "metrics" / "metrics").write_text('{"valid_')


def signalled(monkeypatch, step, number):
    """The process gets a signal while step `step` is noted."""
    note = Trainer._note

    def noted(self, progress, done, metrics):
        if done == step:
            signal.raise_signal(number)
        note(self, progress, done, metrics)

    monkeypatch.setattr(Trainer, "_note", noted)


def scripted(monkeypatch, loss=lambda step: 5.0, gradient=lambda step: 1.0, valid=None):
    """From now on trainers' steps compute nothing: the loop is real, the numbers are told.

    Args:
        monkeypatch: pytest's.
        loss: the loss of the step of that number, counted from 1.
        gradient: likewise its gradient's norm.
        valid: mean losses of validations, one after another; 5.0 once there are no more.
    """
    make, told = Trainer.__init__, iter(() if valid is None else valid)

    def step(params, state, number, *texts):
        number = int(number) + 1
        return params, state, {"loss": loss(number), "grad_norm": gradient(number)}

    def made(self, *arguments):
        make(self, *arguments)
        batches = -(-len(self.valid[0]) // self.config.batch)
        losses = (loss for loss in chain(told, repeat(5.0)) for _ in range(batches))
        self.step = step
        self.validate_batch = lambda _, inputs, targets: next(losses) * targets.size

    monkeypatch.setattr(Trainer, "__init__", made)
