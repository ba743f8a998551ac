"""A result as an evaluation writes it down, for whoever makes tables of results."""

from dataclasses import fields, is_dataclass

from normlab.results import Record

GROUPS = {f.name: f.type for f in fields(Record) if is_dataclass(f.type)}
PLACES = {f.name: group for group, kind in GROUPS.items() for f in fields(kind)}


def grouped(key="k", model="m", precision="fp32", status="ok", **given):
    """A record of fields without their groups; `model` is its name."""
    groups = {group: {} for group in GROUPS}
    groups["model"]["name"] = model
    for name, value in given.items():
        groups[PLACES[name]][name] = value
    made = {group: kind(**groups[group]) for group, kind in GROUPS.items()}
    return Record(key=key, precision=precision, status=status, **made)


def record(model="a", precision="fp32", **fields):
    """One record on one text."""
    given = {
        "norm": "rmsnorm", "placement": "pre", "protocol": "window", "protocol_version": 1,
        "window": 64, "dataset_title": "WikiText-2 (raw)", "split": "test", "tokenizer": "bpe-300",
        "tokens_scored": 1234567, "default_order": "pairwise", "perplexity": 5.116,
    }  # fmt: skip
    return grouped(f"{model}{precision}", model, precision, **(given | fields))
