"""Which run a directory holds: what its parameters depend on, and the refusal of another one."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from normlab.config import build, require, to_dict
from normlab.data import Corpus, Tokenized
from normlab.parallel.distributed import is_main_process
from normlab.results.settings import digest, flattened, identity, method_name
from normlab.runs import jax_settings, sources
from normlab.runs.run import Run
from normlab.training.config import TrainConfig

REFUSED = "refused"
"""The state of a run whose config is none, or that can't begin."""

FILES = {"overrides.yaml", "record.json", "provenance.json", "tokenizer", "imports"}
"""What a run's folder may hold before it has a config.yaml."""
LINE = 400
"""Characters of a reason."""


def run_name(config: dict[str, Any], corpus: str) -> str:
    """norm-placement-hash: the same config on the same text has the same name.

    An optimizer other than AdamW stands before the hash.
    """
    return f"{method_name(flattened(config))}-{digest(config, corpus)}"


def sign(run: Run, config: TrainConfig, tokens: Tokenized, asked: Sequence[str]) -> None:
    """Write down what is about to happen, or check that it is what happened here before.

    record.json comes last: a directory without one was left while it was being made, and is made
    again. So is one that was refused, or failed before its first checkpoint: what was wrong (a
    norm's own file, perhaps) has been mended, and nothing that was trained is lost.

    Raises:
        ValueError: the directory holds a run of another config, text or tokenizer.
    """
    text = {"text": tokens.corpus.sha256("train"), "tokenizer": tokens.tokenizer.hash}
    if _holds_something(run):
        require(
            not run.is_older or run.ended,
            f"{run.directory} was saved by an earlier version: it can be evaluated, but not "
            "resumed; give another run=DIR",
        )
        _refuse_another_config(run, config, tokens.corpus)
        sources.check(run, config.allow_changed_source)
        _refuse_other_settings(run)
        _refuse_another_text(run, text, tokens.corpus.name)
        _forget_refusal(run, config)
        return
    require(
        _strange_file(run) is None,
        f"run={run.directory} holds {_strange_file(run)} and no run: expected a new folder, or a "
        "run's",
    )
    corpus = {n: getattr(tokens.corpus, n) for n in ("name", "revision", "title")}
    run.write("overrides.yaml", list(asked))
    run.write("config.yaml", to_dict(config))
    tokens.tokenizer.save(run["tokenizer"])
    at = [one.norm.type for one in config.norm_at]
    computed = sources.now(config.norm.type, config.placement.type, at)
    sources.keep(run.directory, computed["imports"])
    run.write("provenance.json", text | computed | {"corpus": corpus, "sessions": []})
    run.write("record.json", {"state": "running"})
    _forget_refusal(run, config)


def refuse(config: dict[str, Any], asked: Sequence[str], error: Exception) -> None:
    """Write down why one config of a sweep is none: a row of the table, and no gap in it."""
    run = _without_text(config)
    if run.record.get("state", REFUSED) == REFUSED and _strange_file(run) is None:
        run.write("overrides.yaml", list(asked))
        run.write("config.yaml", config)
        run.write("record.json", {"state": REFUSED, "reason": reason(error)})


def _without_text(config: dict[str, Any]) -> Run:
    """The run of a config whose text nobody has looked for: of `auto` it has a name of its own."""
    name = run_name(config, config["data"]["corpus"])
    return Run(config["run"] or Path(config["runs"]) / name)


def _forget_refusal(run: Run, config: TrainConfig) -> None:
    """Remove the row that says why this run could not begin, where that isn't its directory."""
    row = _without_text(to_dict(config))
    if row.directory != run.directory and row.record.get("state") == REFUSED:
        shutil.rmtree(row.directory, ignore_errors=True)


@contextmanager
def noting_refusal(config: TrainConfig, asked: Sequence[str]) -> Iterator[None]:
    """Let a record say what error kept a run from beginning; that of one that has begun stays."""
    try:
        yield
    except Exception as error:
        if is_main_process():
            with suppress(OSError, ValueError):
                refuse(to_dict(config), asked, error)
        raise


@contextmanager
def noting_failure(run: Run) -> Iterator[None]:
    """Let the record say what error ended a run, which is no end: the same command tries again."""
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # what ended the run (a full disk) may end this too, and is said
            run.write("record.json", run.record | {"state": "failed", "reason": reason(error)})
        raise


def reason(error: Exception) -> str:
    """An error as one line of a record; of a long one its ends: what failed, and the cause."""
    first = (str(error).strip().splitlines() or [""])[0]
    line = f"{type(error).__name__}: {first}"
    return line if len(line) <= LINE else f"{line[: LINE // 2]} … {line[-LINE // 2 :]}"


def _holds_something(run: Run) -> bool:
    state = run.record.get("state", REFUSED)
    return state != REFUSED and (state != "failed" or any(run["checkpoints"].glob("[0-9]*")))


def _strange_file(run: Run) -> str | None:
    """A file in a folder that is no run's; None where there is none."""
    there = {p.name for p in run.directory.glob("*") if not p.name.startswith(".")}
    strange = there - FILES - {"config.yaml"}
    return None if "config.yaml" in there else min(strange, default=None)


def _refuse_another_config(run: Run, config: TrainConfig, corpus: Corpus) -> None:
    saved = to_dict(build(TrainConfig, run.read("config.yaml")))  # what it is older than: defaults
    there = identity(saved, run.read("provenance.json")["corpus"]["name"])
    here = identity(to_dict(config), corpus.name)
    keys = dict.fromkeys([*there, *here])
    differing = [k for k in keys if there.get(k) != here.get(k)]
    if differing:
        first = differing[0]
        raise ValueError(
            f"{run.directory} holds a run of another config ({first} = {there.get(first)!r} there, "
            f"{here.get(first)!r} here); give another run=DIR, or what its config.yaml says"
        )


def _refuse_other_settings(run: Run) -> None:
    sessions = run.read("provenance.json")["sessions"]
    if sessions and "jax_settings" in sessions[-1] and not run.ended:  # older runs don't say
        jax_settings.refuse_others(str(run.directory), sessions[-1]["jax_settings"])


def _refuse_another_text(run: Run, now: dict[str, str], corpus: str) -> None:
    then = run.read("provenance.json")
    for key, value in now.items():
        if then[key] != value:
            raise ValueError(
                f"the {key} has changed since {run.directory} began ({corpus}, SHA-256 "
                f"{then[key][:12]}… then, {value[:12]}… now); put it back, or give another run=DIR"
            )
