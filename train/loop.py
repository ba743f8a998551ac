"""The training loop: steps, validations, checkpoints, and where to go on after a stop."""

import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from normlab.checkpoint import Checkpoints, CorruptCheckpointError
from normlab.data import Batches, Tokenized, load_tokens
from normlab.model import Transformer
from normlab.progress import Progress, console
from normlab.provenance import provenance
from normlab.run import Run, parameters
from train.config import TrainConfig
from train.identity import run_name, sign
from train.metrics import MetricsLog
from train.optimizer import groups, make_optimizer
from train.step import learned, make_step, make_validate
from train.stop import StopRequest


class Diverged(Exception):
    """A loss that is no number any more, after `step` steps."""

    def __init__(self, step: int, what: str):
        super().__init__(f"diverged at step {step}: {what}")
        self.step = step


def train(config: TrainConfig, asked: Sequence[str] = (), stop_after: int | None = None) -> Run:
    """Train until the end, or go on where an earlier call was stopped.

    Args:
        config: what to train.
        asked: the overrides as they were given, for the record.
        stop_after: leave after so many steps of this call, as a kill would (for tests).

    Returns:
        The run, whose record says how it ended. A run that has ended before is returned as it is.
    """
    tokens = load_tokens(config.data)
    run = Run(config.run or Path(config.runs) / run_name(config, tokens.corpus.name))
    if run.ended:
        sign(run, config, tokens, asked)
        console.print(f"{run.directory}: {run.record['state']} already")
        return run
    with run.locked():
        sign(run, config, tokens, asked)
        Trainer(config, tokens, run).fit(stop_after)
    return run


class Trainer:
    """One run: its model, its batches, its directory."""

    def __init__(self, config: TrainConfig, tokens: Tokenized, run: Run):
        c = config
        self.config, self.tokens, self.run = config, tokens, run
        self.batches = Batches(tokens.split("train"), c.batch, c.window, c.seed)
        model = Transformer(c.model, c.norm, c.placement, tokens.tokenizer.vocab_size, c.seed)
        graphdef, self.params = nnx.split(model)
        weights = learned(self.params)
        optimizer = make_optimizer(c.optimizer, c.steps, weights)
        self.state = optimizer.init(weights)
        self.step = make_step(graphdef, optimizer, c.seed, c.steps)
        self.validate_batch = make_validate(graphdef)
        self.size = parameters(model)
        self.log = MetricsLog(run)

    def fit(self, stop_after: int | None = None) -> None:
        """Train to the end and write the record."""
        last = self.config.steps
        with Checkpoints(self.run["checkpoints"], writer=True) as checkpoints:
            start = self._restore(checkpoints)
            self._begin_session(start)
            try:
                state = self._steps(checkpoints, start, min(last, start + (stop_after or last)))
            except Diverged as end:
                state = "diverged"
                self.log.write(end.step, diverged=True)
                console.print(f"{self.run.directory}: {end}")
        if state is not None:
            self._finish(state)

    def _restore(self, checkpoints: Checkpoints) -> int:
        """Load the newest whole checkpoint; the number of steps that are behind us."""
        step, bad = None, list[int]()
        for step in checkpoints.steps():
            try:
                loaded = checkpoints.load(step, params=self.params, optimizer=self.state)
            except CorruptCheckpointError as error:
                console.print(str(error))
                bad.append(step)
                continue
            self.params, self.state = loaded["params"], loaded["optimizer"]
            break
        else:
            self._refuse_to_begin_again(bad)
        for aside in [*checkpoints.set_aside_first, *map(checkpoints.set_aside, bad)]:
            console.print(f"goes on from step {step or 0}; the damaged checkpoint is now {aside}")
        self.log.rewind(step)
        return step or 0

    def _refuse_to_begin_again(self, bad: Sequence[int]) -> None:
        """Where no checkpoint of several can be read, the config's shapes may be what is wrong."""
        if bad:
            raise ValueError(
                f"{self.run.directory}: no checkpoint can be read; give another run=DIR, or remove "
                f"{self.run['checkpoints']} to begin again"
            )

    def _begin_session(self, start: int) -> None:
        """Note by what, and from which step on, the run is trained now, and what it trains."""
        found = self.run.read("provenance.json")
        sessions = [*found["sessions"], {"from_step": start, **provenance()}]
        self.run.write("provenance.json", found | {"sessions": sessions})
        sizes = {"parameters": self.size, "groups": _sizes(learned(self.params))}
        self.run.write("record.json", self.run.record | sizes)

    def _enough(self) -> bool:
        """Whether validation has found nothing better for as long as the config waits."""
        return self.config.patience is not None and self.log.stale() >= self.config.patience

    def _steps(self, checkpoints: Checkpoints, start: int, stop: int) -> str | None:
        """Steps start … stop − 1; how the run ended, or None where it goes on after `stop`."""
        c, pending = self.config, None
        if checkpoints.latest() is None:
            self._validate(checkpoints, 0)
        if start < c.steps and self._enough():  # killed between the last validation and the record
            return "stopped early"
        with StopRequest() as asked, Progress(self._title(), c.steps, start) as progress:
            for step in range(start, stop):
                inputs, targets = self.batches.at(step)
                self.params, self.state, metrics = self.step(
                    self.params, self.state, np.int32(step), inputs, targets
                )
                if pending is not None:  # the device is busy with the next step meanwhile
                    self._note(progress, *pending)
                pending = (step + 1, metrics)
                if (step + 1) % c.eval_every == 0 or step + 1 == c.steps:
                    self._note(progress, *pending)
                    pending = None
                    self._validate(checkpoints, step + 1)
                    if step + 1 < c.steps and self._enough():
                        return "stopped early"
                if asked.number is not None and step + 1 < c.steps:
                    if pending is not None:
                        self._note(progress, *pending)
                    self._leave(checkpoints, step + 1, asked.number)
            if pending is not None:
                self._note(progress, *pending)
        return "finished" if stop == c.steps else None

    def _leave(self, checkpoints: Checkpoints, step: int, number: int) -> None:
        """Save, unless this step's validation has, and end the process as the signal asks."""
        if checkpoints.latest() != step:
            checkpoints.save(step, self.params, self.state, math.inf)
        name = signal.Signals(number).name
        console.print(f"{self.run.directory}: {name} at step {step}; saved, and the same goes on")
        raise SystemExit(128 + number)

    def _note(self, progress: Progress, step: int, metrics: dict[str, jax.Array]) -> None:
        """Fetch a step's metrics, show them, and log them when their turn has come."""
        values = {k: float(v) for k, v in metrics.items()}
        if not all(math.isfinite(v) for v in values.values()):
            raise Diverged(step, f"loss {values['loss']}, gradient norm {values['grad_norm']}")
        rate = self.log.rate(step, self.config.batch * self.config.window)
        speed = f", {rate:,.0f} tokens/s" if rate else ""
        progress.update(step, f"loss {values['loss']:.3f}{speed}")
        if step % self.config.log_every == 0 or step == self.config.steps:
            self.log.write(step, tokens_per_second=round(rate) or None, **values)

    def _validate(self, checkpoints: Checkpoints, step: int) -> None:
        """Mean loss over the validation windows, logged, and a checkpoint that bears it."""
        began = time.monotonic()
        inputs, targets = validation_windows(self.tokens.split("valid"), self.config)
        total = 0.0
        for i in range(0, len(inputs), self.config.batch):
            rows = slice(i, i + self.config.batch)
            total += float(self.validate_batch(self.params, inputs[rows], targets[rows]))
        loss = total / targets.size
        if not math.isfinite(loss):
            raise Diverged(step, f"validation loss {loss}")
        self.log.write(step, valid_loss=loss, valid_perplexity=math.exp(min(loss, 700.0)))
        checkpoints.save(step, self.params, self.state, loss)
        self.log.pause(time.monotonic() - began)

    def _finish(self, state: str) -> None:
        rows, best = self.run.metrics, self.log.best()
        last = rows[-1]["step"] if rows else 0
        record: dict[str, Any] = self.run.record | {
            "state": state,
            "norm": self.config.norm.type,
            "placement": self.config.placement.type,
            "seed": self.config.seed,
            "steps": last,
            "tokens_seen": last * self.config.batch * self.config.window,
            "train_loss": next((r["loss"] for r in reversed(rows) if "loss" in r), None),
            "best_step": best.get("step"),
            "best_valid_loss": best.get("valid_loss"),
            "best_valid_perplexity": best.get("valid_perplexity"),
            "seconds": self.log.seconds(),
        }
        self.run.write("record.json", record)
        reached = f", best validation perplexity {best['valid_perplexity']:.2f}" if best else ""
        console.print(f"{self.run.directory}: {state} after {record['steps']} steps{reached}")

    def _title(self) -> str:
        return f"{self.config.norm.type} {self.config.placement.type} seed {self.config.seed}"


def validation_windows(tokens: np.ndarray, config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """The first disjoint windows of the validation split as (inputs, targets), [windows, window].

    The count is cut to a multiple of the batch where that leaves any: one shape is compiled.
    """
    width = config.window
    count = (len(tokens) - 1) // width
    if config.eval_windows is not None:
        count = min(count, config.eval_windows)
    count = count // config.batch * config.batch or count
    if count == 0:
        raise ValueError(
            f"the validation split has {len(tokens)} tokens, fewer than one window = {width}"
        )
    inputs = np.asarray(tokens[: count * width]).reshape(count, width)
    targets = np.asarray(tokens[1 : count * width + 1]).reshape(count, width)
    return inputs, targets


def _sizes(params: Any) -> dict[str, dict[str, int]]:
    """For each optimizer group its tensors and their elements."""
    named = groups(params)
    sizes: dict[str, dict[str, int]] = {}
    for name, leaf in zip(named.values(), jax.tree.leaves(params), strict=True):
        entry = sizes.setdefault(name, {"tensors": 0, "elements": 0})
        entry["tensors"] += 1
        entry["elements"] += leaf.size
    return sizes
