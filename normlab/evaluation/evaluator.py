"""One model, made ready once, and its scores in any columns."""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.data import Tokenizer
from normlab.evaluation import metadata
from normlab.evaluation.config import REFERENCE, EvaluateConfig
from normlab.evaluation.partial_results import PartialResults
from normlab.evaluation.perplexity import Scaled, Scores, score_columns
from normlab.evaluation.protocols import Protocol, Windows
from normlab.evaluation.targets import EvalTarget
from normlab.evaluation.texts import Texts, calibration_tokens
from normlab.model import Context, Transformer
from normlab.model.language_model import LanguageModel
from normlab.norms import all_norms
from normlab.norms.sites import matching, with_statistic
from normlab.numerics import DoesNotFit
from normlab.numerics.precision import DEFAULT_ORDER
from normlab.progress import Progress, console
from normlab.results.column import Column
from normlab.results.fields import ModelInfo, Provenance, TextInfo
from normlab.results.record import NOT_APPLICABLE, OK, Record
from normlab.scaling import RuleDoesNotApply, needs_calibration, scales
from normlab.transforms import DoesNotApply


@functools.lru_cache(maxsize=1)
def loaded(load: Callable[[], LanguageModel]) -> LanguageModel:
    """The model that was loaded last, for the transforms of one model follow each other."""
    return load()


@dataclass
class Evaluator:
    """A target's model after its transform, its windows, and the scales of each rule.

    Args:
        config: what was asked.
        target: the model, not loaded yet.
        texts: what was read and cut so far.
    """

    config: EvaluateConfig
    target: EvalTarget
    texts: Texts
    _scales: dict[Column, Mapping[str, Any]] = field(default_factory=dict)
    _refused: dict[str, bool] = field(default_factory=dict)

    @cached_property
    def _made(self) -> tuple[LanguageModel, str]:
        """The model after its transform; where that can't rewrite it, the model and "n/a"."""
        lm = replace(loaded(self.target.load), name=self.target.name)
        try:
            lm = replace(lm, model=self.target.transform(lm.model))
            for column in self.config.columns:  # a site that it lacks is refused before any pass
                matching(column.keep_fp32, with_statistic(lm.model))
            return lm, OK
        except DoesNotApply as error:
            console.print(f"{self.target.name}: {error}")
            return lm, NOT_APPLICABLE

    @property
    def lm(self) -> LanguageModel:
        """The model that is scored."""
        return self._made[0]

    @cached_property
    def status(self) -> str:
        """The status of its records: ok, or why nothing is scored."""
        return self.target.status if self.target.status != OK else self._made[1]

    @cached_property
    def model(self) -> ModelInfo:
        """Which model it is."""
        if self.target.status != OK:
            return metadata.of_run(self.target)
        return metadata.of_model(self.lm, str(self.target.transform))

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        """The model's; of a run that can't be evaluated the one that it left, if any."""
        if self.target.status == OK:
            return self.lm.tokenizer
        return self.target.tokenizer and self.target.tokenizer()

    @cached_property
    def text(self) -> TextInfo:
        """What is read, and how; nothing of a run without a tokenizer."""
        if self._tokenizer is None:
            return TextInfo()
        return metadata.of_text(self.config, self.target, self.texts, self._tokenizer)

    @cached_property
    def provenance(self) -> Provenance:
        """What the numbers of all columns depend on beside these two."""
        made = metadata.of_process(self.config)
        if self._tokenizer is None:
            return made
        return replace(made, default_order=str(DEFAULT_ORDER), batch=self._batch(self._tokenizer))

    @property
    def batch(self) -> int:
        """Windows that run together."""
        return self._batch(self.lm.tokenizer)

    def _batch(self, tokenizer: Tokenizer) -> int:
        windows = self.texts.windows(self.target, self.config, tokenizer)
        return metadata.batch(self.config, windows, tokenizer)

    @cached_property
    def windows(self) -> Windows:
        """What is scored."""
        return self.texts.windows(self.target, self.config, self.lm.tokenizer)

    @cached_property
    def _protocol(self) -> Protocol:
        return self.target.protocol(self.config.protocol)

    def record(self, column: Column) -> Record:
        """What a column's record says before anything is computed."""
        known = self.model, self.status, self.text
        provenance = replace(
            self.provenance, datapath=column.datapath, activations=column.activations
        )
        return Record(self.key(column), str(column), *known, provenance=provenance)

    @cached_property
    def _sums(self) -> bool:
        """Whether there is anything that a precision can change: a norm's statistic."""
        return bool(with_statistic(self.lm.model))

    def applies(self, column: Column) -> bool:
        """Whether a column can change anything, by a rule and a datapath that serve this model."""
        held = column.activations is not None and column.rule is column.datapath is None
        served = (self._sums or held) and not self._refuses(column) and self._fits(column)
        return str(column) == REFERENCE or served

    def _fits(self, column: Column) -> bool:
        """Whether a datapath can compute this model's norms; why not is printed."""
        told, model = Context(column.precision), self.lm.model
        try:
            if column.datapath is None:
                return True
            if isinstance(model, Transformer):
                graphdef, params = nnx.split(model)
                two = jax.ShapeDtypeStruct((1, 2), jnp.int32)
                jax.eval_shape(lambda p, t: nnx.merge(graphdef, p)(t, told), params, two)
            else:
                for norm in all_norms(model):
                    rows = jax.ShapeDtypeStruct((1, 2, norm.width), jnp.float32)
                    jax.eval_shape(partial(told.norm, norm), rows)
        except DoesNotFit as error:
            console.print(f"{self.target.name}: {column}: {error}")
            return False
        return True

    def _refuses(self, column: Column) -> bool:
        """Whether the column's rule can't serve this model; why is printed once."""
        rule = column.rule
        if rule is not None and rule not in self._refused:
            try:
                self.scales(column)
                self._refused[rule] = False
            except RuleDoesNotApply as error:
                console.print(f"{self.target.name}: {error}")
                self._refused[rule] = True
        return rule is not None and self._refused[rule]

    def key(self, column: Column) -> str:
        """Hash of all that the result depends on; the scales follow from rule, weights and code."""
        model, provenance = asdict(self.model), asdict(self.provenance)
        del model["facts"]
        # The sources say it exactly: a commit may touch only docs, "-dirty" may be anything.
        provenance["environment"].pop("code", None)
        known: dict[str, Any] = {
            "model": model,
            "text": asdict(self.text),
            "provenance": provenance,
        }
        known |= {"precision": str(column), "status": self.status, "datapath": column.datapath}
        if column.rule and needs_calibration(column.rule):
            known["calibration"] = self.config.calibration_windows
            if self.status == OK and self._sums:
                text = self.texts.corpus(self.target, self.config)
                known["calibration_text"] = text.sha256("valid")
        if self.status == OK and self._protocol.prefixed:
            known["prefix"] = self.lm.tokenizer.prefix
        told = json.dumps(known, sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:24]

    @cached_property
    def _calibration(self) -> tuple[jax.Array, dict[str, Any]]:
        corpus = self.texts.corpus(self.target, self.config)
        window = self.target.window(self._protocol, self.config.window)
        tokens, facts = calibration_tokens(
            corpus, self.lm.tokenizer, window, self.config.calibration_windows
        )
        return jnp.asarray(tokens), facts

    def scales(self, column: Column) -> tuple[Mapping[str, Any], dict[str, Any] | None]:
        """The scales of a column's rule, applied once to a model, and what it looked at."""
        if column.rule is None:
            return {}, None
        looks = needs_calibration(column.rule)
        tokens, facts = self._calibration if looks else (None, None)
        rule = Column(rule=column.rule, pow2=column.pow2)
        if rule not in self._scales:
            self._scales[rule] = scales(
                self.lm.model, column.rule, pow2=column.pow2, calibration=tokens
            )
        return self._scales[rule], facts

    def scores(
        self, columns: Sequence[Column], beside: LanguageModel | None = None
    ) -> tuple[list[Scores], float | None]:
        """Of columns side by side, and the seconds that they took; None where some were done.

        Args:
            columns: the first is the one that the others' tokens are compared with.
            beside: a model in whose fp32 tokens are compared with those of all columns instead.
        """
        batch, windows = self.batch, self.windows
        began = time.monotonic()
        title = f"{self.target.name} {', '.join(c.short for c in columns)}"
        partial = self._partial(columns, beside is not None)
        start = min(len(partial.done) * batch, len(windows)) if partial else 0
        if start:
            console.print(f"{title}: goes on after the first {start} windows of an earlier call")
        before = np.cumsum([0, *windows.counts])
        with Progress(title, len(windows), start) as progress:

            def on_batch(done: int) -> None:
                rate = (before[done] - before[start]) / (time.monotonic() - began)
                progress.update(done, f"{rate:,.0f} tokens/s")

            scaled = [self.scaled(column) for column in columns]
            if beside is not None:
                scaled.insert(0, Scaled(Column().precision, model=beside.model))
            found = score_columns(
                self.lm.model, windows, scaled, batch=batch, on_batch=on_batch, unfinished=partial
            )
        if partial:
            partial.remove()
        return found[-len(columns) :], None if start else time.monotonic() - began

    def scaled(self, column: Column) -> Scaled:
        """A column as a pass is told of it."""
        kept = matching(column.keep_fp32, with_statistic(self.lm.model))
        told = kept if column.keep_fp32 else None
        return Scaled(column.precision, self.scales(column)[0], column.held, keep_fp32=told)

    def _partial(self, columns: Sequence[Column], beside: bool) -> PartialResults | None:
        """Where these columns' first batches are kept; hosts that share a pass keep nothing."""
        if jax.process_count() > 1:
            return None
        keys = " ".join(["beside"] * beside + [self.key(column) for column in columns])
        name = hashlib.sha256(keys.encode()).hexdigest()[:24]
        return PartialResults(Path(self.config.out) / "unfinished" / name)
