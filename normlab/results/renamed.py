"""Names in files of earlier versions (before 0.2), as they are called now."""

import re
from collections.abc import Mapping
from typing import Any

CONFIG = {"norm.scale": "norm.use_weight", "watch_every": "diagnostics_every"}
"""Fields of a run's config.yaml."""
PARTS = {"norm_skip": "post_norm", "norm_inner": "sub_norm", "gain": "weight"}
"""Parts of the dotted name of a site or a parameter."""
RECORD = {"harmed_rows": "underflow_error_rows", "imprecise_rows": "precision_loss_rows"}
"""Fields of a record."""
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
    """A record with today's fields."""
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
