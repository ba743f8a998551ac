"""Names in files of earlier versions (before 0.2), as they are called now."""

import re
from collections.abc import Mapping
from typing import Any

from normlab.registry import choice

CONFIG = {"norm.scale": "norm.use_weight", "watch_every": "diagnostics_every"}
"""Fields of a run's config.yaml."""
PARTS = {"norm_skip": "post_norm", "norm_inner": "sub_norm", "gain": "weight"}
"""Parts of the dotted name of a site or a parameter."""
RECORD = {"harmed_rows": "underflow_error_rows", "imprecise_rows": "precision_loss_rows"}
"""Fields of a record."""
GROUPS: dict[str, tuple[str, ...]] = {
    "model": (
        "name", "norm", "placement", "transform", "note", "weights_sha256", "parameters", "config",
        "norm_config", "placement_config", "seed", "facts",
    ),
    "text": (
        "protocol", "protocol_version", "reported", "window", "max_windows", "windows",
        "tokens_scored", "words", "bytes", "dataset", "dataset_title", "dataset_revision", "split",
        "sha256", "tokenizer", "tokenizer_hash",
    ),
    "result": (
        "perplexity", "sum_nll", "word_perplexity", "byte_perplexity", "bits_per_byte",
        "nonfinite_windows", "window_nll", "window_tokens", "window_words", "seconds",
        "tokens_per_second", "token_nll_file",
    ),
    "comparison": (
        "delta", "delta_stderr", "word_delta", "word_delta_stderr", "token_delta_mean",
        "token_delta_max", "token_delta_max_at", "top1_agreement", "kl_mean", "kl_max",
    ),
    "ranges": (
        "rows", "overflowed_rows", "underflowed_rows", "zero_rows", "precision_loss_rows",
        "underflow_error_rows", "sites",
    ),
    "provenance": (
        "order", "default_order", "scale_rule", "scales_sha256", "calibration", "batch",
        "environment",
    ),
}  # fmt: skip
"""Where a field of a record stands that had no groups (schema 1)."""
UNGROUPED = {
    "name": "model", "config": "model_config", "sha256": "text_sha256", "environment": "provenance",
}  # fmt: skip
"""What some of these were called before they were in a group."""
SITE = {"harmed": "underflow_errors", "imprecise": "precision_loss"}
"""What a record says of one site."""


def is_older(config: Mapping[str, Any]) -> bool:
    """Whether a run's config.yaml was written before the renaming."""
    return "watch_every" in config


def config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with today's fields."""
    norm = {
        CONFIG.get(f"norm.{key}", f"norm.{key}").removeprefix("norm."): value
        for key, value in (values.get("norm") or {}).items()
    }
    made = {CONFIG.get(key, key): value for key, value in values.items()}
    return made | ({"norm": norm} if "norm" in made else {})


def name(dotted: str) -> str:
    """A site or parameter by today's name."""
    return ".".join(PARTS.get(part, part) for part in dotted.split("."))


def older_name(dotted: str) -> str:
    """Today's name of a site or parameter as an older file has it."""
    old = {new: old for old, new in PARTS.items()}
    return ".".join(old.get(part, part) for part in dotted.split("."))


def precision(text: str) -> str:
    """`lanes(8)` is `lanes8` now, and the order `rounded` is `exact_then_round`."""
    return re.sub(r"\((\d+)\)", r"\1", text).replace(":rounded", ":exact_then_round")


def record(values: Mapping[str, Any]) -> dict[str, Any]:
    """A record's JSON in today's schema; one that says which it is has today's names.

    Raises:
        UnknownNameError: a field that no record without groups had.
    """
    return dict(values) if "schema" in values else _grouped(_with_todays_names(values))


def _with_todays_names(values: Mapping[str, Any]) -> dict[str, Any]:
    made = {RECORD.get(key, key): value for key, value in values.items()}
    for key in {"precision", "order"} & made.keys():
        made[key] = made[key] and precision(made[key])
    if made.get("order") == "rounded":
        made["order"] = "exact_then_round"
    made["sites"] = {
        name(site): {SITE.get(key, key): value for key, value in seen.items()}
        for site, seen in made.get("sites", {}).items()
    }
    facts = made.get("facts", {})
    if facts.get("config"):
        made["facts"] = facts | {"config": config(facts["config"])}
    if "norm_config" in made:
        made["norm_config"] = config({"norm": made["norm_config"]})["norm"]
    return made


def _grouped(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a record without groups, in groups."""
    places = {UNGROUPED.get(f, f): (group, f) for group, fields in GROUPS.items() for f in fields}
    whole = ("key", "precision", "status")
    made: dict[str, Any] = {"schema": 2, **{k: values[k] for k in whole if k in values}}
    for key in values.keys() - made.keys():
        group, field = places[choice("field of a record", key, places)]
        made.setdefault(group, {})[field] = values[key]
    return made
