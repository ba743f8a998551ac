"""The door that both applications come in by: command line → frozen dataclass.

Hydra composes YAML and overrides; the schema is the application's dataclass. Behind this file
nobody sees an object of Hydra's or OmegaConf's.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab.config import build, describe, to_dict
from normlab.model import PlacementConfig, placements
from normlab.norms import norms
from normlab.registry import unknown

C = TypeVar("C")

CONFIGS = Path(__file__).parent.parent / "configs"
TRACEBACK = "NORMLAB_TRACEBACK"
"""Environment variable: set to 1 for the traceback behind an error's one or two lines."""


def launch(app: str, schema: type[C], main: Callable[[C, Sequence[str]], None]) -> None:
    """Run `main(config, overrides)` on what configs/{app}.yaml and the command line say.

    Errors in what was asked are printed in a line or two, and the exit status is 2.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        print_help(app, schema)
        return
    register(app, schema)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's errors come here, not to its printer

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=app)
    def job(composed: Any) -> None:
        with explained():
            values: Any = OmegaConf.to_container(composed, resolve=True)
            main(build(schema, values), list(HydraConfig.get().overrides.task))

    with explained():
        job()


@contextmanager
def explained() -> Iterator[None]:
    """Print an error in what was asked in a line or two, and leave with status 2.

    That is an error of Hydra's, of the system's (a file), or one that this project's own code
    raised about a value. What JAX or a new norm runs into keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or not _about_what_was_asked(error):
            raise
        where = "" if isinstance(error, HydraException) else f"\n({TRACEBACK}=1 shows where)"
        print(f"error: {explain(error)}{where}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)


def _about_what_was_asked(error: Exception) -> bool:
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError)):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in = Path(frame.f_code.co_filename)
    ours = any(
        raised_in.is_relative_to(CONFIGS.parent / n) for n in ("normlab", "train", "evaluate")
    )
    return ours and isinstance(error, (ValueError, TypeError))


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


def explain(error: BaseException) -> str:
    """An error in one or two lines: what was given, what was expected, what is nearest."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return str(unknown(group or "config", name, error.options))
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    node, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if isinstance(node, DictConfig) and key is not None and key not in node:
        group = str(cause.full_key).rpartition(".")[0]  # type: ignore[union-attr]
        return str(unknown(f"key of {group}" if group else "key", key, map(str, node)))
    return "\n".join(str(cause or error).strip().split("\n    full_key")[0].split("\n")[:2])


def groups(app: str) -> list[str]:
    """The groups that configs/{app}.yaml lets one choose from."""
    listed = yaml.safe_load((CONFIGS / f"{app}.yaml").read_text())["defaults"]
    names = [key for entry in listed if isinstance(entry, dict) for key in entry]
    return [name for name in names if not name.startswith("override ")]


def options(group: str) -> list[str]:
    """What `group=` can be: files of configs/GROUP, and what is registered."""
    registered: Any = {"norm": norms, "placement": placements}.get(group, ())
    return sorted({p.stem for p in (CONFIGS / group).glob("*.yaml")} | set(registered))


def print_help(app: str, schema: type) -> None:
    """Every field with its default and its description."""
    print(f"python -m {app} [FIELD=VALUE ...]    each field, its default, what it means\n")
    for path, value, text in describe(schema()):
        print(f"  {path + '=' + shown(value):34} {text}")
    print("\nGroups: a name chooses several fields at once")
    for group in groups(app):
        print(f"  {group}=  {', '.join(options(group))}")
    for name in norms if "norm" in groups(app) else ():
        fields = [d for d in describe(norms[name].Config()) if d[0] != "type"]
        print(f"\nFields of norm={name}" if fields else "")
        for path, value, text in fields:
            print(f"  {f'norm.{path}={shown(value)}':34} {text}")
    print(
        f"\nMore of Hydra (sweeps with -m, launchers): python -m {app} --hydra-help\n"
        f"The traceback behind an error: {TRACEBACK}=1"
    )


def shown(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(map(shown, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
