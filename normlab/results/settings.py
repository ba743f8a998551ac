"""Settings: the fields of training runs' configs, and those in which several runs differ."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from normlab.results.record import Record

RATE = "optimizer.lr"
TYPED = ("norm", "placement", "optimizer")
"""Groups with a type, which has defaults of its own."""
OF_A_TEXT = tuple(
    f"data.{name}"
    for name in ("path", "name", "config", "revision", "column", "rows", "streaming", "split")
)
"""How a text of one's own is found and cut: its corpus' name has a hash of what comes of it."""
ELSEWHERE = (
    "run",
    "runs",
    "log_every",
    "diagnostics_every",
    "keep_every",
    "tracking",
    "data.root",
    "data.cache",
    *OF_A_TEXT,
    "imports",
    "allow_changed_source",
)
"""What says where things lie and how often they are told."""
ON_DEVICES = ("mesh.", "hosts.", "parts")
"""What says on which devices and how a run goes on: it may change from call to call, and last bits
with it.

Each session's own is in provenance.json."""
_SHOWN_ALREADY = ("norm.type", "placement.type")


def flattened(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """A nested config as dotted field → value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_group = isinstance(value, dict)
        flat |= flattened(value, f"{path}{key}.") if is_group else {f"{path}{key}": value}
    return flat


def decides(field: str) -> bool:
    """Whether what a run learns depends on a field of its config."""
    return field not in ELSEWHERE and not field.startswith(ON_DEVICES)


def identity(config: dict[str, Any], corpus: str | None) -> dict[str, Any]:
    """All of a run's config that decides what it learns, flat.

    Args:
        config: as config.yaml has it, nested.
        corpus: the text that was found, where the config leaves that open (`auto`); None: unknown.
    """
    flat = {key: value for key, value in flattened(config).items() if decides(key)}
    return flat | ({"data.corpus": corpus} if corpus else {})


def method_name(config: Mapping[str, Any]) -> str:
    """A flat config's norm and placement, and an optimizer other than AdamW: "rmsnorm-pre"."""
    words = [config.get(f"{group}.type") for group in TYPED]
    return "-".join(str(word) for word in words if word not in (None, "adamw"))


def digest(config: dict[str, Any], corpus: str | None) -> str:
    """The identity in ten hexadecimal digits, for names."""
    told = json.dumps(identity(config, corpus), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:10]


def of_run(record: Record) -> dict[str, Any]:
    """The config of the training run that a record is of, flat; empty for a pretrained model."""
    config = record.model.facts.get("config") or {}
    return flattened(config) if "optimizer" in config else {}


def differing(configs: Iterable[dict[str, Any]]) -> list[str]:
    """Fields in which flat configs differ; those of a group with a type among configs of that type.

    What types differ in by default says nothing beside their names.
    """
    values: dict[tuple[str, str], set[str]] = {}
    for config in configs:
        for key, value in config.items():
            group = key.partition(".")[0]
            kind = str(config.get(f"{group}.type")) if group in TYPED else ""
            values.setdefault((kind, key), set()).add(json.dumps(value))
    found = dict.fromkeys(key for (_, key), seen in values.items() if len(seen) > 1)
    return [key for key in found if key not in _SHOWN_ALREADY]


def shown(value: Any) -> str | int | float:
    """A config's value as YAML writes it; numbers stay numbers."""
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return value if plain else json.dumps(value)
