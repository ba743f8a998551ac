"""The door that both applications come in by: command line → frozen dataclass.

Hydra composes YAML and overrides; the schema is the application's dataclass. Behind this file
nobody sees an object of Hydra's or OmegaConf's.
"""

import json
import math
import os
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab.commands import compile_cache
from normlab.config import build, describe, to_dict
from normlab.model import PlacementConfig, placements
from normlab.norms import norms
from normlab.progress import sweep
from normlab.registry import choice, unknown

C = TypeVar("C")

CONFIGS = Path(__file__).parent.parent / "configs"
TRACEBACK = "NORMLAB_TRACEBACK"
"""Environment variable: set to 1 for the traceback behind an error's one or two lines."""


def launch(
    app: str,
    schema: type[C],
    main: Callable[[C, Sequence[str]], None],
    examples: str = "",
    refused: Callable[[dict[str, Any], Sequence[str], Exception], None] | None = None,
) -> None:
    """Run `main(config, overrides)` on what configs/{app}.yaml and the command line say.

    Errors in what was asked are printed in a line or two, and the exit status is 2. In a sweep the
    other runs go on.

    Args:
        app: what stands behind `python -m`.
        schema: the application's config.
        main: does what was asked.
        examples: lines of the help, before the fields.
        refused: told of the configs of a sweep that `schema` refuses: values, overrides, error.
    """
    register(app, schema)
    if {"-h", "--help"} & set(sys.argv[1:]):
        with explained():
            print_help(app, schema, examples)
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's errors come here, not to its printer

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=app)
    def job(composed: Any) -> None:
        values: Any = OmegaConf.to_container(composed, resolve=True)
        asked = list(HydraConfig.get().overrides.task)
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        with one_of_several(asked) if several else explained():
            compile_cache.use()
            if several and (runs := runs_here()):
                sweep.begin(HydraConfig.get().job.num + 1, runs)
            try:
                config = build(schema, values)
            except (ValueError, TypeError) as error:
                if several and refused is not None:
                    refused(values, asked, error)
                raise
            main(config, asked)

    with explained():
        refuse_strange(app, schema, sys.argv[1:])
        compile_cache.use()  # and in each job, which a launcher may start in another process
        job()


def runs_here() -> int | None:
    """How many runs a sweep has, where this process goes through all of them; else None."""
    found = HydraConfig.get()
    kinds = {found.runtime.choices[f"hydra/{kind}"] for kind in ("launcher", "sweeper")}
    given = [a for a in sys.argv[1:] if "=" in a and not a.startswith(("-", "hydra"))]
    given = [f"{key}={value}" for key, value in (found.sweeper.params or {}).items()] + given
    values = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(given)}
    swept = [o for o in values.values() if o.is_sweep_override()]
    if kinds != {"basic"} or any(isinstance(o.value(), Glob) for o in swept):
        return None
    return math.prod(len(list(o.sweep_string_iterator())) for o in swept)


@contextmanager
def explained() -> Iterator[None]:
    """Print an error in what was asked in a line or two, and leave with status 2.

    That is an error of Hydra's, of the system's (a file), or one that this project's own code
    raised about a value. What JAX or a new norm runs into keeps its traceback.
    """
    try:
        yield
    except BrokenPipeError:  # the reader has read enough: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or not _about_what_was_asked(error):
            raise
        where = "" if isinstance(error, HydraException) else f"\n({TRACEBACK}=1 shows where)"
        print(f"error: {explain(error)}{where}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)


class RunFailed(Exception):
    """What is left of one run's error in a sweep: words, which every launcher can carry."""


@contextmanager
def one_of_several(asked: Sequence[str]) -> Iterator[None]:
    """Turn an error of one run into `RunFailed`, which Hydra keeps until all runs have ended."""
    try:
        yield
    except Exception as error:
        if os.environ.get(TRACEBACK) == "1" or not _about_what_was_asked(error):
            traceback.print_exc()
        said = f"{' '.join(asked)}: {explain(error)}"
        print(f"failed: {said}", file=sys.stderr)
        raise RunFailed(f"not every run of the sweep went well; the first: {said}") from None


def refuse_strange(app: str, schema: type, arguments: Sequence[str]) -> None:
    """Refuse `--steps 10`, as other programs write it, and a group that is another program's.

    Raises:
        ValueError: with the way to write it here, or with what there is.
    """
    fields = [path for path, _, _ in describe(schema())]
    names = {*fields, *(path.split(".")[0] for path in fields)}
    known = {*(name for name in names if "." not in name), *groups(app)}
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0].replace("-", "_")
        if argument.startswith("--") and name in names:
            raise ValueError(f"{argument}: fields are written without dashes: {name}=VALUE")
        if name.isidentifier() and (CONFIGS / name).is_dir() and name not in known:
            raise unknown("key", name, known)


def _about_what_was_asked(error: Exception) -> bool:
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError, RunFailed)):
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
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return f"{error.override!r}: expected FIELD=VALUE; --help says which fields there are"
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    node, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if isinstance(node, DictConfig) and key is not None and key not in node:
        group = str(cause.full_key).rpartition(".")[0]  # type: ignore[union-attr]
        known = {str(k): v for k, v in node.items() if k != "hydra"}
        if group and not known:
            return f"{group}.{key}: {group} is one value and has no keys; expected {group}=VALUE"
        deeper = [path for path in _leaves(known) if path.endswith(f".{key}")]
        if deeper:
            return f"unknown key {key!r}. Did you mean {' or '.join(map(repr, deeper))}?"
        return str(unknown(f"key of {group}" if group else "key", key, known))
    said = str(cause or error).strip()
    if said.startswith("Ambiguous value"):  # Hydra's three ways out, the likeliest first
        argument = said.split("'")[1]
        name, _, values = argument.partition("=")
        return f"{argument}: several values are a sweep: add -m; a list is {name}=[{values}]"
    return "\n".join(said.split("\n    full_key")[0].split("\n")[:2])


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted paths of all fields below a mapping."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def groups(app: str) -> list[str]:
    """The groups that configs/{app}.yaml lets one choose from."""
    listed = yaml.safe_load((CONFIGS / f"{app}.yaml").read_text())["defaults"]
    names = [key for entry in listed if isinstance(entry, dict) for key in entry]
    return [name for name in names if not name.startswith("override ")]


def options(group: str) -> list[str]:
    """What `group=` can be: files of configs/GROUP, and what is registered."""
    registered: Any = {"norm": norms, "placement": placements}.get(group, ())
    return sorted({p.stem for p in (CONFIGS / group).glob("*.yaml")} | set(registered))


def print_help(app: str, schema: type, examples: str = "") -> None:
    """Examples, then every field with its default and its description.

    The fields of a norm are those of the type that the command line names.
    """
    print(f"python -m {app} [FIELD=VALUE ...]")
    print(textwrap.indent(examples.rstrip(), "  "))
    asked = [a.removeprefix("norm=") for a in sys.argv[1:] if a.startswith("norm=")]
    if asked:
        choice("norm", asked[-1], options("norm"))
    norm = norms[asked[-1]].Config() if asked and asked[-1] in norms else None
    fields = described(schema(), norm)
    for _, part in groupby(fields, lambda field: field[0].rpartition(".")[0]):
        print()
        for path, value, text in part:
            print(entry(f"{path}={shown(value)}", text))
    print("\nGroups: a name chooses several fields at once" if groups(app) else "")
    for group in groups(app):
        print(entry(f"{group}=", ", ".join(options(group))))
    if "norm" in groups(app):
        print(f"\nThe fields of another norm: python -m {app} norm=NAME --help", end="")
    print(
        "\nWhat stands behind each name: python -m evaluate list\n"
        f"More of Hydra (sweeps with -m, launchers): python -m {app} --hydra-help\n"
        f"The traceback behind an error: {TRACEBACK}=1\n"
        f"Compiled programs are kept in NORMLAB_CACHE/xla: not with {compile_cache.SWITCH}=off"
    )


def described(config: Any, norm: Any = None) -> Iterator[tuple[str, Any, str]]:
    """`describe`, with the fields of `norm` in the place of the default one's."""
    for path, value, text in describe(config):
        if norm is None or not path.startswith("norm."):
            yield path, value, text
        elif path == "norm.type":
            yield from describe(norm, "norm.")


def entry(name: str, text: str) -> str:
    """A line of the help; on a terminal broken where it ends, in a pipe never."""
    start = f"  {name:34} "
    if not sys.stdout.isatty():
        return start + text
    width = max(shutil.get_terminal_size().columns, 60)
    return textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * 37)


def shown(value: Any) -> str:
    """A value as one writes it on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(map(shown, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
