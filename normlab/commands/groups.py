"""The groups of `configs/`: what a name on the command line can choose."""

from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore

from normlab.config import to_dict
from normlab.model import PlacementConfig, placements
from normlab.norms import norms

CONFIGS = Path(__file__).parent.parent / "configs"


def register(app: str, schema: type) -> None:
    """Tell Hydra the defaults, and every registered norm and placement as a group's option.

    Hydra gets plain dictionaries (a frozen dataclass would be read-only to it): it knows which keys
    there are, and `build` checks what they hold.
    """
    store = ConfigStore.instance()
    root = to_dict(schema())
    if "norm" in root:
        root["norm"] = {}  # the chosen type's fields
    store.store(name=f"{app}_schema", node=root)
    for name in norms:
        store.store(group="norm", name=name, node=to_dict(norms[name].Config()))
    for name in placements:
        store.store(group="placement", name=name, node=to_dict(PlacementConfig(type=name)))


def groups(app: str) -> list[str]:
    """The groups that configs/{app}.yaml lets one choose from."""
    listed = yaml.safe_load((CONFIGS / f"{app}.yaml").read_text())["defaults"]
    names = [key for entry in listed if isinstance(entry, dict) for key in entry]
    return [name for name in names if not name.startswith("override ")]


def options(group: str) -> list[str]:
    """What `group=` can be: files of configs/GROUP, and what is registered."""
    registered: Any = {"norm": norms, "placement": placements}.get(group, ())
    return sorted({p.stem for p in (CONFIGS / group).glob("*.yaml")} | set(registered))
