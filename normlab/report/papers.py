"""Where each number comes from: a block for each run and each record, which tables lead to."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from normlab.pretrained import PACKAGES
from normlab.report.markup import Markup, anchor, element
from normlab.report.sources import Sources, Trained
from normlab.results import Record
from normlab.results.settings import shown

Facts = Iterable[tuple[str, Any]]


def papers(sources: Sources) -> list[Markup]:
    """A block for each run, then one for each record."""
    runs = [_block(anchor("run", r.name), r.name, _of_run(r)) for r in sources.runs]
    records = [
        _block(anchor("record", r.key), f"{r.model}, {r.precision}", _of_record(r))
        for r in sources.records
    ]
    return [
        *([element("h3", "Runs"), *runs] if runs else []),
        *([element("h3", "Records"), *records] if records else []),
    ]


def _block(name: str, title: str, facts: Facts) -> Markup:
    rows = [
        [element("dt", what), element("dd", value)]
        for what, value in facts
        if value is not None and value != ""
    ]
    return element("details", element("summary", title), element("dl", rows), id=name)


def _of_run(run: Trained) -> Facts:
    p, r = run.provenance, run.record
    corpus = p.get("corpus", {})
    yield "command", code(["python", "-m", "train", *map(str, run.asked)]) if run.asked else None
    yield "state", run.state
    yield "best validation loss", r.get("best_valid_loss")
    yield "text", corpus.get("title", corpus.get("name"))
    yield "revision of the text", corpus.get("revision")
    yield "SHA-256 of the training text", p.get("text")
    yield "hash of the tokenizer", p.get("tokenizer")
    sessions = p.get("sessions", [])
    for session in sessions:
        start = f", from step {session.get('from_step')}" if len(sessions) > 1 else ""
        for what, value in machine(session):
            yield f"{what}{start}", value


def _of_record(r: Record) -> Facts:
    yield "command", command(r)
    yield "status", r.status
    yield "note", r.note
    yield "perplexity", r.perplexity
    yield "word perplexity", r.word_perplexity
    yield "sum of NLL in nats", r.sum_nll
    yield "tokens scored", r.tokens_scored
    yield "windows", r.windows
    if r.precision != "fp32":
        yield "Δ to fp32", r.delta
        yield "its standard error", r.delta_stderr
    yield "KL to fp32, mean", r.kl_mean
    yield "top-1 agreement with fp32", r.top1_agreement
    yield "rows", _rows(r)
    yield "protocol", f"{r.protocol} v{r.protocol_version}, windows of {r.window}"
    yield "text", f"{r.dataset_title}, {r.split}" if r.dataset_title else None
    yield "revision of the text", r.dataset_revision
    yield "SHA-256 of the text", r.text_sha256
    yield "tokenizer", f"{r.tokenizer}, {r.tokenizer_hash}" if r.tokenizer else None
    yield "order of summation", r.order
    yield "scale rule", r.scale_rule
    yield "SHA-256 of the scales", r.scales_sha256
    yield "calibration", shown(r.calibration) if r.calibration else None
    yield "SHA-256 of the weights", r.weights_sha256
    yield "weights from", r.facts.get("source")
    yield "seed", r.seed
    yield "record", r.key
    yield from machine(r.provenance)


def _rows(r: Record) -> str | None:
    if not r.rows:
        return None
    lost = f"{r.overflowed_rows or 0:,} overflowed, {r.zero_rows or 0:,} vanished"
    return f"{r.rows:,}, of which {lost}"


def machine(p: dict[str, Any]) -> Facts:
    """Code, packages and device of a provenance."""
    yield "code", " ".join(str(p[k]) for k in ("normlab", "code") if p.get(k))
    yield "SHA-256 of the sources", p.get("source")
    found = {"python": p.get("python"), **p.get("packages", {})}
    yield "packages", ", ".join(f"{name} {version}" for name, version in found.items() if version)
    yield "device", ", ".join(str(p[k]) for k in ("device", "platform") if p.get(k))
    yield "XLA_FLAGS", p.get("xla_flags")


def command(r: Record) -> Markup | None:
    """What asks for this number again; None for what was not evaluated."""
    if r.protocol is None:
        return None
    mesh = r.provenance.get("mesh", {})
    fields = {
        "precision": f"[{r.precision}]",
        "transform": f"[{r.transform}]" if r.transform != "none" else None,
        "data.corpus": r.dataset,
        "split": r.split,
        "protocol": r.protocol,
        "window": r.window,
        "max_windows": r.max_windows,
        "calibration_windows": (r.calibration or {}).get("windows"),
        **{f"mesh.{name}": mesh.get(name) for name in ("data", "model", "shard_parameters")},
    }
    given = [f"{name}={value}" for name, value in fields.items() if value is not None]
    return code(["python", "-m", "evaluate", _source(r), *given])


def _source(r: Record) -> str:
    source, name = r.facts.get("source", ""), r.model.removesuffix(f" ({r.transform})")
    if "family" not in r.facts:
        return f"run={source}"
    if name in PACKAGES:
        return f"pretrained={name}"
    return f"pretrained={'gguf' if source.endswith('.gguf') else 'hf'}:{source}"


def code(words: Sequence[str]) -> Markup:
    """A command as one types it."""
    return element("code", shlex.join(words))
