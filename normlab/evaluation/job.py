"""An evaluation: its models one after another, each result written down as soon as it is there."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from normlab.config import build, require
from normlab.evaluation import metadata
from normlab.evaluation.comparison import comparison, token_measures
from normlab.evaluation.config import REFERENCE, EvaluateConfig
from normlab.evaluation.evaluator import Evaluator, loaded
from normlab.evaluation.measures import ranges, result
from normlab.evaluation.perplexity import Scores
from normlab.evaluation.store import RecordStore
from normlab.evaluation.targets import UNREADABLE, EvalTarget, targets
from normlab.evaluation.tensor_ranges import WINDOWS, rewritten
from normlab.evaluation.texts import Texts
from normlab.model.language_model import LanguageModel
from normlab.parallel.distributed import joined_processes, private_copy
from normlab.progress import console
from normlab.results import Record
from normlab.results.column import Column
from normlab.results.record import NOT_APPLICABLE, OK
from normlab.runs.checkpoint_errors import CorruptCheckpointError
from normlab.transforms import AUTO, NOTHING

if TYPE_CHECKING:
    import pandas as pd


def evaluate(config: EvaluateConfig) -> list[Record]:
    """The records that were asked for, those made earlier reused, in the order of the table.

    Raises:
        ValueError, FileNotFoundError: what can't be evaluated, before anything is loaded.
    """
    out = private_copy(Path(config.out))
    with joined_processes(config.hosts), config.mesh.use(), out as directory:
        return _records(with_numbers(dataclasses.replace(config, out=str(directory))))


def table(**fields: Any) -> tuple[list[Record], "pd.DataFrame"]:
    """An evaluation in memory: `table(pretrained="smollm2-135m", precision=["fp32", "fp16"])`.

    Args:
        fields: those of `EvaluateConfig`, groups as dictionaries. Without `out` nothing is kept.

    Returns:
        The records, and a frame with a row for each: its single values (`Record.flat`).

    Raises:
        ValueError, FileNotFoundError: what can't be evaluated, before anything is loaded.
    """
    import pandas as pd  # slow

    with tempfile.TemporaryDirectory() as nowhere:
        records = evaluate(build(EvaluateConfig, {"out": nowhere} | fields))
    return records, pd.DataFrame([r.flat() for r in records])


def with_numbers(config: EvaluateConfig) -> EvaluateConfig:
    """The config with a number for each `rescale:auto`, found on the first windows of the text.

    Raises:
        ValueError: of several runs, each would have its own.
    """
    if not any(AUTO in text for text in config.transform):
        return config
    require(
        config.source != "runs",
        f"transform = {AUTO} is found for one model: expected run=DIR or pretrained=NAME",
    )
    few = min(config.max_windows or WINDOWS, WINDOWS)
    plain = dataclasses.replace(config, transform=(NOTHING,), max_windows=few)
    evaluator = Evaluator(plain, targets(plain)[0], Texts())
    told = [rewritten(evaluator.lm, evaluator.windows, text)[0] for text in config.transform]
    return dataclasses.replace(config, transform=tuple(told))


def _records(config: EvaluateConfig) -> list[Record]:
    found, store, texts = targets(config), RecordStore(config), Texts()
    for target in found:
        if target.tokenizer is not None:  # of the others nothing is read
            texts.corpus(target, config)
    asked = [str(column) for column in config.columns]
    records = []
    for target in found:
        evaluator = Evaluator(config, _readable(target, config), texts)
        rows = of_model(evaluator, store, [REFERENCE, *asked])
        records += [rows[text] for text in asked]
    return records


def _reference(evaluator: Evaluator, store: RecordStore) -> tuple[Record, LanguageModel] | None:
    """The model of a transform before it, and its record in fp32; None where it is as loaded."""
    plain = evaluator.target.untransformed
    if plain == evaluator.target:
        return None
    base = Evaluator(evaluator.config, plain, evaluator.texts)
    return of_model(base, store, [REFERENCE])[REFERENCE], base.lm


def _readable(target: EvalTarget, config: EvaluateConfig) -> EvalTarget:
    """Of many runs, one whose checkpoint can't be used is a row that says so."""
    if config.source != "runs" or target.status != OK:
        return target
    try:
        loaded(target.load)
    except (CorruptCheckpointError, FileNotFoundError) as error:
        console.print(f"{target.name}: {error}")
        return dataclasses.replace(target, status=f"{UNREADABLE}{error}")
    return target


def of_model(evaluator: Evaluator, store: RecordStore, asked: list[str]) -> dict[str, Record]:
    """The record of each column of one model, found or made."""
    columns = {text: Column.parse(text) for text in asked}
    found = {text: store.find(evaluator.key(column)) for text, column in columns.items()}
    rows = {text: record for text, record in found.items() if record is not None}
    left = [text for text in columns if text not in rows]
    for text in list(left):
        status = evaluator.status
        if status == OK and not evaluator.applies(columns[text]):
            status = NOT_APPLICABLE
        if status != OK:
            left.remove(text)
            empty = evaluator.record(columns[text])
            rows[text] = store.add(dataclasses.replace(empty, status=status))
    compare = evaluator.config.compare
    base = _reference(evaluator, store) if left else None
    for group in _passes(left, compare, base is None):
        beside = base[1] if base and compare else None
        scores, seconds = evaluator.scores([columns[text] for text in group], beside)
        for text, one in zip(group, scores, strict=True):
            if text in left:
                made = _record(evaluator, store, columns[text], one, seconds)
                own = made if text == REFERENCE else rows[REFERENCE]
                exact = base[0] if base else own
                tokens = token_measures(one, evaluator.windows)
                delta = comparison(made.result, exact.result, tokens)
                rows[text] = store.add(dataclasses.replace(made, comparison=delta))
    return rows


def _passes(left: Sequence[str], compare: bool, own: bool) -> Iterator[list[str]]:
    """The columns that run together: one by one, or to compare tokens all beside the reference.

    That is the model's own fp32, if `own`, and then the first column.
    """
    if compare and left:
        yield list(dict.fromkeys([REFERENCE] * own + list(left)))
    elif not compare:
        yield from ([text] for text in left)


def _record(
    evaluator: Evaluator, store: RecordStore, column: Column, scores: Scores, seconds: float | None
) -> Record:
    """All that a column's scores say by themselves."""
    blank, (scales, calibration) = evaluator.record(column), evaluator.scales(column)
    windows = evaluator.windows
    alone = None if evaluator.config.compare else seconds
    return dataclasses.replace(
        blank,
        result=dataclasses.replace(
            result(scores, windows),
            seconds=alone,
            tokens_per_second=float(scores.counts.sum()) / alone if alone else None,
            token_nll_file=store.keep_tokens(blank.key, scores, windows),
        ),
        ranges=ranges(scores, scales),
        provenance=dataclasses.replace(
            blank.provenance,
            order=column.precision.summed,
            scale_rule=column.rule,
            scales_sha256=metadata.sha256(jax.tree.leaves(scales)) if column.rule else None,
            calibration=calibration,
        ),
    )
