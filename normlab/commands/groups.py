"""The groups of `configs/`: what a name on the command line can choose."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

from normlab.config import to_dict
from normlab.model import PlacementConfig, placements
from normlab.norms import norms
from normlab.registry import Registry
from normlab.training.optimizers import optimizers

CONFIGS = Path(__file__).parent.parent / "configs"
TYPED: dict[str, Registry[Any]] = {"norm": norms, "placement": placements, "optimizer": optimizers}
"""Groups whose options are registered types, each with defaults of its own."""
OWN_FIELDS: dict[str, Callable[[str], Any]] = {
    "norm": lambda name: norms[name].Config(),
    "optimizer": lambda name: optimizers[name](),
}
"""Of these groups each type has fields of its own: its name to its config."""


def register(app: str, schema: type) -> None:
    """Tell Hydra the defaults, and every registered norm and placement as a group's option.

    Hydra gets plain dictionaries (a frozen dataclass would be read-only to it): it knows which keys
    there are, and `build` checks what they hold.
    """
    store = ConfigStore.instance()
    root = to_dict(schema())
    root |= {group: {} for group in OWN_FIELDS if group in root}  # the chosen type's fields
    store.store(name=f"{app}_schema", node=root)
    for group, made in OWN_FIELDS.items():
        for name in TYPED[group]:
            store.store(group=group, name=name, node=to_dict(made(name)))
    for name in placements:
        store.store(group="placement", name=name, node=to_dict(PlacementConfig(type=name)))


def refuse_another_type(choices: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """Refuse a type that was put on the defaults of another one.

    Args:
        choices: the option that was chosen of each group.
        values: the composed config.

    Raises:
        ValueError: with the option that brings the type's own defaults.
    """
    for group, registry in TYPED.items():
        found = values[group]["type"] if group in values else None
        if found in registry and found != _type_of(group, choices[group]):
            raise ValueError(
                f"{group}.type={found} would have the defaults of {group}={choices[group]}: "
                f"expected {group}={found}, and its fields after that"
            )


def _type_of(group: str, option: str) -> str:
    """The registered type that an option of a group is, or is based on."""
    file = CONFIGS / group / f"{option}.yaml"
    if not file.exists():
        return option
    return str(yaml.safe_load(file.read_text(encoding="utf-8"))["defaults"][0])


def groups(app: str) -> dict[str, str | None]:
    """The groups that configs/{app}.yaml lets one choose from, and what is chosen of each.

    A verb without such a file has none.
    """
    if not (CONFIGS / f"{app}.yaml").exists():
        return {}
    listed = yaml.safe_load((CONFIGS / f"{app}.yaml").read_text())["defaults"]
    entries = [pair for entry in listed if isinstance(entry, dict) for pair in entry.items()]
    return {name: chosen for name, chosen in entries if not name.startswith("override ")}


def refuse_no_name(app: str, argument: str) -> None:
    """Refuse `norm=`, `norm=null` and `norm=[a,b]`: a group's value is a name.

    Raises:
        ValueError: with the names, and what it is where it is left out.
    """
    group, _, value = argument.partition("=")
    if group in groups(app) and value.startswith("["):
        each = value.strip("[]").replace(" ", "")
        raise ValueError(f"{argument}: expected one name; several in turn: -m {group}={each}")
    if group in groups(app) and {"", "null"} & set(value.split(",")):
        chosen = groups(app)[group]
        known = ", ".join(options(group))
        left_out = f"left out it is {group}={chosen}" if chosen else "left out there is none"
        raise ValueError(f"{argument}: expected a name; {left_out}. Known: {known}.")


def refuse_path(app: str, argument: str) -> None:
    """Refuse `data=FILE`: a text of one's own has a field for its path.

    Raises:
        ValueError: with the two fields to write instead.
    """
    group, _, value = argument.partition("=")
    if group != "data" or group not in groups(app) or value in options(group):
        return
    if any(mark in value for mark in "/\\.*") or os.path.exists(value):
        raise ValueError(f"{argument}: a text of your own is data=text data.path={value}")


def refuse_misplaced(
    app: str, schema: type, choices: Mapping[str, str], values: Mapping[str, Any]
) -> None:
    """Refuse a file whose fields stand below its group's name, where the schema has none.

    Raises:
        ValueError: with the line that it lacks.
    """
    fields = {f.name for f in dataclasses.fields(schema)}
    for group in groups(app):
        if group in values and group not in fields:
            raise ValueError(
                f"{group}={choices[group]}: its file has no line `# @package _global_`, without "
                "which its fields are nobody's; expected that as its first line"
            )


def options(group: str) -> list[str]:
    """What `group=` can be: files of configs/GROUP, and what is registered."""
    registered: Any = TYPED.get(group, ())
    return sorted({p.stem for p in (CONFIGS / group).glob("*.yaml")} | set(registered))
