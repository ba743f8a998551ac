"""The training loop: steps, validations, checkpoints, and where to go on after a stop."""

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.config import to_dict
from normlab.data import Batches, DataConfig, PretrainedTokenizer, Tokenized, load_tokens
from normlab.data.unigram import unigram_loss
from normlab.model import ModelConfig, PlacementConfig, Transformer
from normlab.norms import NormConfig, Site, check_sums, norms
from normlab.norms.sites import NormAt
from normlab.parallel.distributed import (
    agreed_maximum,
    joined_processes,
    on_main_process,
    private_copy,
)
from normlab.parallel.sharding import shard_batch, shard_params
from normlab.progress import Progress, announced, console, sweep
from normlab.runs import sources, user_files
from normlab.runs.checkpoint import Checkpoints
from normlab.runs.checkpoint_errors import CorruptCheckpointError
from normlab.runs.provenance import provenance, source_hash
from normlab.runs.run import Run, parameters
from normlab.training import start
from normlab.training.config import TrainConfig
from normlab.training.diagnostics import Diagnostics
from normlab.training.identity import noting_failure, noting_refusal, run_name, sign
from normlab.training.metrics import MetricsLog
from normlab.training.optimizers import groups, make_optimizer
from normlab.training.parts import parts_of
from normlab.training.stacked import Layers
from normlab.training.step import (
    PROGRAMS,
    learned,
    make_step,
    make_validate,
    validation_loss,
)
from normlab.training.stop import StopRequest
from normlab.training.tracking import check_installed, tracked


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
    with joined_processes(config.hosts), ExitStack() as stack:
        with noting_refusal(config, asked):
            stack.enter_context(config.mesh.use())
            run, tokens = ready(config)
        with (
            held(run, config, tokens, asked),
            private_copy(run.directory, "checkpoints") as directory,
        ):
            mine = Run(directory)
            if mine.ended:
                console.print(f"{run.directory}: {mine.record['state']} already")
            else:
                with noting_failure(mine):
                    Trainer(config, tokens, mine).fit(stop_after)
    return run


def ready(config: TrainConfig) -> tuple[Run, Tokenized]:
    """A run's directory and its text, where all is there that it needs.

    Raises:
        ValueError: no such model can be built, or the run isn't ended and wants a kernel or a
            package that isn't here.
        CorpusUnavailableError, CorpusDamagedError: see `load_tokens`.
    """
    c = config
    _try_to_build(c.model, c.norm, c.placement, c.norm_at)
    tokens = _tokens(c.data) if c.init is None else start.tokens(c.init, c.data)
    run = Run(c.run or Path(c.runs) / run_name(to_dict(c), tokens.corpus.name))

    def check_here() -> None:
        if not run.ended:
            c.compute.attention_kernel(jnp.dtype(c.compute.dtype), c.model.head_size)
            check_installed(c.tracking)

    on_main_process(check_here)
    return run, tokens


def _tokens(data: DataConfig) -> Tokenized:
    """The text of a config; a sweep's later runs take what its first one has read."""
    if sweep.run == 1:
        _kept_tokens.cache_clear()
    return _kept_tokens(data, data.root_folder(), data.cache_folder())


@lru_cache(1)
def _kept_tokens(data: DataConfig, root: Path | None, cache: Path) -> Tokenized:
    return load_tokens(data, _opened)


def _opened(tokenizer: str) -> PretrainedTokenizer:
    from normlab.pretrained.tokenizer import open_tokenizer  # formats that few runs need

    return open_tokenizer(tokenizer)


@lru_cache(PROGRAMS)
def _try_to_build(
    model: ModelConfig, norm: NormConfig, placement: PlacementConfig, norm_at: tuple[NormAt, ...]
) -> None:
    """Raise what such a model raises; a sweep's later runs of the same needn't ask.

    An initial value that a constructor refuses is met where the trainer builds the model.
    """
    nnx.eval_shape(lambda: Transformer(model, norm, placement, 2, norm_at=norm_at))
    for config in {norm, *(at.norm for at in norm_at)}:
        kind = norms[config.type]
        if user_files.defining(kind):  # nobody else has asked it yet
            check_sums(kind(model.width, Site("norm_final", "norm_final"), config))


@contextmanager
def held(run: Run, config: TrainConfig, tokens: Tokenized, asked: Sequence[str]) -> Iterator[None]:
    """The run's directory signed and, until the run has ended, locked, by the first process."""
    with ExitStack() as stack:

        def begin() -> None:
            if not run.ended:
                stack.enter_context(run.locked())
            sign(run, config, tokens, asked)

        on_main_process(begin)
        yield


class Trainer:
    """One run: its model, its batches, its directory."""

    def __init__(self, config: TrainConfig, tokens: Tokenized, run: Run):
        c = config
        self.config, self.tokens, self.run = config, tokens, run
        self.batches = Batches(tokens.split("train"), c.batch, c.window, c.seed)
        rows = tokens.tokenizer.vocab_size
        model = Transformer(c.model, c.norm, c.placement, rows, c.seed, c.norm_at)
        if c.init is not None:
            console.print(start.from_pretrained(c.init, model, self.batches.at(0).inputs))
        nnx.update(model, shard_params(nnx.state(model)))  # what isn't divided may not live on
        self.layers = Layers(model, c.compute.scan_layers)
        graphdef, params = nnx.split(self.layers.model)
        self.params = shard_params(params)
        weights = learned(self.params)
        scan, width = c.compute.scan_layers, c.model.width
        optimizer = make_optimizer(c.optimizer, c.steps, weights, scan, width)
        self.state = shard_params(optimizer.init(weights))
        split = c.accumulate, self._parts(model)
        step = make_step(graphdef, optimizer, c.seed, c.steps, c.compute, *split)
        self.step = announced(step)
        self.validate_batch = announced(make_validate(graphdef, c.compute.precision))
        self.size = parameters(model)
        self.log = MetricsLog(run)
        self.valid = validation_windows(tokens.split("valid"), c)
        self.watch = Diagnostics(
            run, self.layers.graphdef, c.steps, c.diagnostics_every, self.valid, c.compute.precision
        )

    def _parts(self, model: Transformer) -> int:
        """In how many parts a step takes its batch: chosen once, where the config says nothing."""
        c, saved = self.config, self.run.read("config.yaml")
        if c.accumulate > 1:
            return 1
        kept = c.parts or saved.get("parts")
        parts = parts_of(model, c.batch, c.window, kept)
        if saved.get("parts") != (kept or parts):
            self.run.write("config.yaml", saved | {"parts": kept or parts})
        return parts

    def fit(self, stop_after: int | None = None) -> None:
        """Train to the end and write the record."""
        with StopRequest() as asked:
            state = self._trained(asked, stop_after or self.config.steps)
            if state is not None:
                self._finish(state)
        number = agreed_maximum(asked.number, due=True)
        if number is not None:  # too late to stop this run; the next one shall not begin
            raise SystemExit(128 + number)

    def _trained(self, asked: StopRequest, most: int) -> str | None:
        """At most so many steps of this call; how the run ended, or None where it goes on."""
        kept = self.config.keep_every
        with Checkpoints(self.run["checkpoints"], writer=True, keep_every=kept) as checkpoints:
            start = self._restore(checkpoints)
            self._begin_session(start)
            with tracked(self.config.tracking, self.run, start) as trackers:
                self.log.trackers = self.watch.trackers = trackers
                try:
                    stop = min(self.config.steps, start + most)
                    return self._steps(checkpoints, asked, start, stop)
                except Diverged as end:
                    self.log.write(end.step, diverged=True)
                    console.print(f"{self.run.directory}: {end}")
                    return "diverged"

    def _restore(self, checkpoints: Checkpoints) -> int:
        """Load the newest whole checkpoint; the number of steps that are done."""
        step, bad = None, list[int]()
        for step in checkpoints.steps():
            try:
                loaded = checkpoints.load(step, **self._saved())
            except CorruptCheckpointError as error:
                console.print(str(error))
                bad.append(step)
                continue
            self.params = shard_params(self.layers.loaded(loaded["params"], self.params))
            self.state = shard_params(self.layers.loaded(loaded["optimizer"], self.state))
            break
        else:
            self._refuse_to_begin_again(bool(bad or checkpoints.damaged()))
        for aside in [*checkpoints.set_aside_first, *map(checkpoints.set_aside, bad)]:
            console.print(f"goes on from step {step or 0}; the damaged checkpoint is now {aside}")
        self.log.rewind(step)
        self.watch.lines.rewind(step)
        return step or 0

    def _refuse_to_begin_again(self, damaged: bool) -> None:
        """Where no checkpoint of several can be read, the config's shapes may be what is wrong."""
        if damaged:
            raise ValueError(
                f"{self.run.directory}: no checkpoint can be read; give another run=DIR, or remove "
                f"{self.run['checkpoints']} to begin again"
            )

    def _begin_session(self, start: int) -> None:
        """Note by what, and from which step on, the run is trained now, and what it trains."""
        found = self.run.read("provenance.json")
        changed = sources.check(self.run, allowed=True)
        source = {"source": source_hash(), "changed_source": changed}
        session = {"from_step": start, **provenance(), **source, **self.config.mesh.told()}
        sessions = [*found["sessions"], session]
        self.run.write("provenance.json", found | {"sessions": sessions})
        sizes = {"parameters": self.size, "groups": _sizes(self.layers.saved(learned(self.params)))}
        train, vocabulary = self.tokens.split("train"), self.tokens.tokenizer.vocab_size
        nothing = {"unigram_valid_loss": unigram_loss(train, self.valid[1], vocabulary)}
        self.run.write("record.json", {"state": "running", **sizes, **nothing})

    def _enough(self) -> bool:
        """Whether validation has found nothing better for as long as the config waits."""
        return self.config.patience is not None and self.log.stale() >= self.config.patience

    def _steps(
        self, checkpoints: Checkpoints, asked: StopRequest, start: int, stop: int
    ) -> str | None:
        """Steps start … stop − 1; how the run ended, or None where it goes on after `stop`."""
        c, pending = self.config, None
        with Progress(self._title(), c.steps, start) as progress:
            if checkpoints.latest() is None:
                self._stand_still(checkpoints, 0)
                if sweep.run == 1:  # those of the others are written in the same way
                    checkpoints.read_back(0, **self._saved())
            if start < c.steps and self._enough():  # killed after the last validation
                return "stopped early"
            for step in range(start, stop):
                inputs, targets = shard_batch(*self.batches.rows(step))
                if self.watch.due(step + 1):
                    self.watch.before(step + 1, self.layers.apart(self.params))
                self.params, self.state, metrics = self.step(
                    self.params, self.state, np.int32(step), inputs, targets
                )
                if pending is not None:  # the device is busy with the next step meanwhile
                    self._note(progress, *pending)
                pending = (step + 1, metrics)
                if self._validates(step + 1) or self.watch.due(step + 1):
                    self._note(progress, *pending)
                    pending = None
                    self._stand_still(checkpoints, step + 1)
                    if step + 1 < c.steps and self._enough():
                        return "stopped early"
                signal_number = agreed_maximum(asked.number, due=(step + 1) % c.log_every == 0)
                if signal_number is not None and step + 1 < c.steps:
                    if pending is not None:
                        self._note(progress, *pending)
                    self._leave(checkpoints, step + 1, signal_number)
            if pending is not None:
                self._note(progress, *pending)
        return "finished" if stop == c.steps else None

    def _saved(self) -> dict[str, Any]:
        """What a checkpoint holds, the same whether layers are stacked or not."""
        saved = self.layers.saved
        return {"params": saved(self.params), "optimizer": saved(self.state)}

    def _leave(self, checkpoints: Checkpoints, step: int, number: int) -> None:
        """Save, unless this step's validation has, and end the process as the signal asks."""
        if checkpoints.latest() != step:
            checkpoints.save(step, **self._saved(), valid_loss=math.inf)
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

    def _validates(self, step: int) -> bool:
        return step % self.config.eval_every == 0 or step == self.config.steps

    def _stand_still(self, checkpoints: Checkpoints, step: int) -> None:
        """Between two steps: watch and validate, as they are due, in time that no step spends."""
        began = time.monotonic()
        if self.watch.due(step):
            self.watch.after(step, self.layers.apart(self.params))
        if self._validates(step):
            self._validate(checkpoints, step)
        self.log.pause(time.monotonic() - began)

    def _validate(self, checkpoints: Checkpoints, step: int) -> None:
        """Mean loss over the validation windows, logged, and a checkpoint that bears it."""
        loss = validation_loss(self.validate_batch, self.params, self.valid, self.config.batch)
        if not math.isfinite(loss):
            raise Diverged(step, f"validation loss {loss}")
        self.log.write(step, valid_loss=loss, valid_perplexity=math.exp(min(loss, 700.0)))
        checkpoints.save(step, **self._saved(), valid_loss=loss)

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
        which = f" ({sweep.label})" if sweep.label else ""
        console.print(
            f"{self.run.directory}{which}: {state} after {record['steps']} steps{reached}"
        )

    def _title(self) -> str:
        c = self.config
        return sweep.label or f"{c.norm.type} {c.placement.type} seed {c.seed}"


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
    row = tokens[: count * width + 1].astype(np.int32)
    return row[:-1].reshape(count, width), row[1:].reshape(count, width)


def _sizes(params: Any) -> dict[str, dict[str, int]]:
    """For each optimizer group its tensors and their elements."""
    named = groups(params)
    sizes: dict[str, dict[str, int]] = {}
    for name, leaf in zip(named.values(), jax.tree.leaves(params), strict=True):
        entry = sizes.setdefault(name, {"tensors": 0, "elements": 0})
        entry["tensors"] += 1
        entry["elements"] += leaf.size
    return sizes
