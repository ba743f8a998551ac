"""One model in one precision after another, each result written down as soon as it is there."""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normlab.evaluation import metadata as facts
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.measures import compared, measures, token_measures
from normlab.evaluation.partial_results import PartialResults
from normlab.evaluation.perplexity import Column, Scores, score_columns
from normlab.evaluation.protocols import Windows, protocols
from normlab.evaluation.targets import EvalTarget, targets
from normlab.evaluation.texts import Texts, calibration_tokens
from normlab.model.language_model import LanguageModel
from normlab.norms import norms
from normlab.numerics import Precision
from normlab.parallel.distributed import joined_processes, private_copy
from normlab.progress import Progress, console
from normlab.results import Record, RecordFile
from normlab.results.record import NOT_APPLICABLE, OK
from normlab.runs.checkpoint_errors import CorruptCheckpointError
from normlab.scaling import RuleDoesNotApply, needs_calibration, scales
from normlab.transforms import DoesNotApply

REFERENCE = "fp32"
"""What Δ refers to."""
WHERE_ASKED = (
    "token_delta_mean", "token_delta_max", "token_delta_max_at", "top1_agreement", "kl_mean",
    "kl_max", "token_nll_file", "seconds", "tokens_per_second",
)  # fmt: skip
"""Fields of a record that some calls fill and others leave."""


def evaluate(config: EvaluateConfig) -> list[Record]:
    """The records that were asked for, those made earlier reused, in the order of the table.

    Raises:
        ValueError, FileNotFoundError: what can't be evaluated, before anything is loaded.
    """
    with joined_processes(config.hosts), config.mesh.use(), private_copy(Path(config.out)) as out:
        return _records(dataclasses.replace(config, out=str(out)))


def _records(config: EvaluateConfig) -> list[Record]:
    found = targets(config)
    file, texts = RecordFile(Path(config.out) / "records.jsonl"), Texts()
    done = {record.key: record for record in file.read()}
    for target in found:
        if target.tokenizer is not None:  # of the others nothing is read
            texts.corpus(target, config)
    asked = [str(Precision.parse(text)) for text in config.precision]
    records = []
    for target in found:
        bench = Evaluator(config, _readable(target, config), texts, file, done)
        rows = {p: bench.record(p) for p in dict.fromkeys([REFERENCE, *asked])}
        records += [rows[p] for p in dict.fromkeys(asked)]
    return records


@functools.lru_cache(maxsize=1)
def _loaded(load: Callable[[], LanguageModel]) -> LanguageModel:
    """The model that was loaded last, for the transforms of one model follow each other."""
    return load()


def _readable(target: EvalTarget, config: EvaluateConfig) -> EvalTarget:
    """Of many runs, one whose checkpoint can't be used is a row that says so."""
    if config.source != "runs" or target.status != OK:
        return target
    try:
        _loaded(target.load)
    except (CorruptCheckpointError, FileNotFoundError) as error:
        console.print(f"{target.name}: {error}")
        return dataclasses.replace(target, status=f"unreadable: {error}")
    return target


@dataclass
class Evaluator:
    """One model on the bench: what all its records share is worked out once."""

    config: EvaluateConfig
    target: EvalTarget
    texts: Texts
    file: RecordFile
    done: dict[str, Record]
    _scales: dict[tuple[str, bool], Mapping[str, Any]] = field(default_factory=dict)
    _refused: dict[str, bool] = field(default_factory=dict)
    _scored: dict[str, Scores] = field(default_factory=dict)
    _seconds: float | None = None

    def record(self, text: str) -> Record:
        """The record of one precision, from the file or made now."""
        precision = Precision.parse(text)
        key = self._key(precision)
        if self._has(key):
            return self.done[key]
        record = Record(key=key, precision=text, **self._known)
        if self._status != OK:
            record = dataclasses.replace(record, status=self._status)
        elif not self._applies(precision):
            record = dataclasses.replace(record, status=NOT_APPLICABLE)
        else:
            record = self._evaluated(record, precision)
            record = compared(record, record if text == REFERENCE else self.record(REFERENCE))
            record = self._with_earlier(record)
        self.file.add(record)
        self.done[key] = record
        return record

    def _with_earlier(self, record: Record) -> Record:
        """What an earlier call kept of the same thing, and this one was not asked for."""
        earlier = self.done.get(record.key)
        missing = [name for name in WHERE_ASKED if getattr(record, name) is None]
        kept: dict[str, Any] = {name: getattr(earlier, name, None) for name in missing}
        return dataclasses.replace(record, **kept)

    @cached_property
    def _lm(self) -> LanguageModel:
        return self._made[0]

    @cached_property
    def _made(self) -> tuple[LanguageModel, str]:
        """The model after its transform; where that can't rewrite it, the model and "n/a"."""
        lm = dataclasses.replace(_loaded(self.target.load), name=self.target.name)
        try:
            return dataclasses.replace(lm, model=self.target.transform(lm.model)), OK
        except DoesNotApply as error:
            console.print(f"{self.target.name}: {error}")
            return lm, NOT_APPLICABLE

    @cached_property
    def _status(self) -> str:
        return self.target.status if self.target.status != OK else self._made[1]

    @cached_property
    def _known(self) -> dict[str, Any]:
        """The fields that don't depend on the precision."""
        ready = self.target.status == OK
        make = (lambda: self._lm.tokenizer) if ready else self.target.tokenizer
        known = self._of_model() if ready else facts.of_run(self.target)
        known |= {"provenance": known["provenance"] | self.config.mesh.told()}
        if make is None:
            return known
        return known | facts.of_text(self.config, self.target, self.texts, make())

    def _of_model(self) -> dict[str, Any]:
        return facts.of_model(self._lm, str(self.target.transform))

    @cached_property
    def _windows(self) -> Windows:
        return self.texts.windows(self.target, self.config, self._lm.tokenizer)

    @cached_property
    def _sums(self) -> bool:
        """Whether there is anything that a precision can change: a norm's statistic."""
        return norms[self._lm.model.norm.type].has_statistic

    def _applies(self, precision: Precision) -> bool:
        """Whether the precision can change anything, by a rule that has scales for this model."""
        return str(precision) == REFERENCE or (self._sums and not self._refuses(precision))

    def _refuses(self, precision: Precision) -> bool:
        """Whether the precision's rule can't serve this model; why is printed once."""
        rule = precision.rule
        if rule is not None and rule not in self._refused:
            try:
                self._rule(precision)
                self._refused[rule] = False
            except RuleDoesNotApply as error:
                console.print(f"{self.target.name}: {error}")
                self._refused[rule] = True
        return rule is not None and self._refused[rule]

    def _key(self, precision: Precision) -> str:
        """Hash of all that the result depends on; the scales follow from rule, weights and code."""
        known = {k: v for k, v in self._known.items() if k != "facts"}
        # The sources say it exactly: a commit may touch only docs, "-dirty" may be anything.
        known["provenance"] = {k: v for k, v in known["provenance"].items() if k != "code"}
        known |= {"precision": str(precision), "status": self._status}
        if precision.rule and needs_calibration(precision.rule):
            known["calibration"] = self.config.calibration_windows
            if self._status == OK and self._sums:
                text = self.texts.corpus(self.target, self.config)
                known["calibration_text"] = text.sha256("valid")
        if self._status == OK and protocols[known["protocol"]].prefixed:
            known["prefix"] = self._lm.tokenizer.prefix
        told = json.dumps(known, sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:24]

    def _evaluated(self, record: Record, precision: Precision) -> Record:
        found, calibration = self._rule(precision)
        scores = self._scores(record)
        seconds = None if self.config.compare else self._seconds
        return dataclasses.replace(
            record,
            order="native float32" if precision.plain else str(precision.summation),
            scale_rule=precision.rule,
            scales_sha256=facts.sha256(jax.tree.leaves(found)) if precision.rule else None,
            calibration=calibration,
            seconds=seconds,
            tokens_per_second=float(scores.counts.sum()) / seconds if seconds else None,
            token_nll_file=self._keep_tokens(scores, record.key),
            **measures(scores, self._windows, found),
            **token_measures(scores, self._windows),
        )

    def _scores(self, record: Record) -> Scores:
        """One column's, or with `compare` those of all columns that are still missing at once."""
        if record.precision not in self._scored:
            texts = self._missing() if self.config.compare else [record.precision]
            precisions = [Precision.parse(text) for text in texts]
            columns = [Column(p, self._rule(p)[0]) for p in precisions]
            keys = [self._key(precision) for precision in precisions]
            found = self._run(columns, f"{record.model} {', '.join(texts)}", keys)
            self._scored = dict(zip(texts, found, strict=True))
        return self._scored[record.precision]

    def _missing(self) -> list[str]:
        """The reference, and the columns that have no record or no comparison with it."""
        asked = dict.fromkeys(str(Precision.parse(text)) for text in self.config.precision)
        return [REFERENCE] + [
            text
            for text in asked
            if text != REFERENCE
            and not self._has(self._key(Precision.parse(text)))
            and self._applies(Precision.parse(text))
        ]

    def _run(self, columns: list[Column], title: str, keys: Sequence[str]) -> list[Scores]:
        batch = self._known["batch"]
        windows, began = self._windows, time.monotonic()
        unfinished = self._unfinished(keys)
        start = min(len(unfinished.done) * batch, len(windows)) if unfinished else 0
        if start:
            console.print(f"{title}: goes on behind the first {start} windows of an earlier call")
        behind = np.cumsum([0, *windows.counts])
        with Progress(title, len(windows), start) as progress:

            def on_batch(done: int) -> None:
                rate = (behind[done] - behind[start]) / (time.monotonic() - began)
                progress.update(done, f"{rate:,.0f} tokens/s")

            found = score_columns(
                self._lm.model, windows, columns,
                batch=batch, on_batch=on_batch, unfinished=unfinished,
            )  # fmt: skip
        if unfinished:
            unfinished.remove()
        self._seconds = None if start else time.monotonic() - began
        return found

    def _unfinished(self, keys: Sequence[str]) -> PartialResults | None:
        """Where these columns' first batches are kept; hosts that share a pass keep nothing."""
        if jax.process_count() > 1:
            return None
        name = hashlib.sha256(" ".join(keys).encode()).hexdigest()[:24]
        return PartialResults(Path(self.config.out) / "unfinished" / name)

    @cached_property
    def _calibration(self) -> tuple[jax.Array, dict[str, Any]]:
        corpus, window = self.texts.corpus(self.target, self.config), self._known["window"]
        tokens, facts = calibration_tokens(
            corpus, self._lm.tokenizer, window, self.config.calibration_windows
        )
        return jnp.asarray(tokens), facts

    def _rule(self, precision: Precision) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
        """The scales of a precision's rule, each rule applied once to a model."""
        if precision.rule is None:
            return {}, None
        looks = needs_calibration(precision.rule)
        tokens, facts = self._calibration if looks else (None, None)
        rule, pow2 = asked = precision.rule, precision.pow2
        if asked not in self._scales:
            found = scales(self._lm.model, rule, pow2=pow2, calibration=tokens)
            self._scales[asked] = found
        return self._scales[asked], facts

    def _keep_tokens(self, scores: Scores, key: str) -> str | None:
        """Scored tokens and their NLL, in the order of the text, in a file beside the records."""
        if not self.config.per_token:
            return None
        name, scored = f"tokens/{key}.npz", self._windows.scored
        path = Path(self.config.out) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, nll=scores.token_nll[scored], tokens=self._windows.targets[scored])
        return name

    def _has(self, key: str) -> bool:
        """Whether there is a record with all that was asked for."""
        record = self.done.get(key)
        if record is None or record.status != OK:
            return record is not None
        if self.config.compare and record.precision != REFERENCE and record.kl_mean is None:
            return False
        name = record.token_nll_file
        kept = name is not None and (Path(self.config.out) / name).exists()
        return kept or not self.config.per_token
