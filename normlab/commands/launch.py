"""From a command line to a frozen dataclass, and from there to what a command does.

Hydra composes YAML and overrides; the schema is the command's dataclass. Behind this file nobody
sees an object of Hydra's or OmegaConf's.
"""

import difflib
import io
import math
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from normlab.commands import compile_cache
from normlab.commands.errors import explained, one_of_several
from normlab.commands.groups import (
    CONFIGS,
    groups,
    refuse_another_type,
    refuse_misplaced,
    refuse_no_name,
    refuse_path,
    register,
)
from normlab.commands.help import print_help
from normlab.config import build, describe, require
from normlab.progress import sweep
from normlab.registry import unknown
from normlab.runs import user_files

C = TypeVar("C")


def _returned(ended: JobReturn) -> Any:
    """What a job returned or raised, without the line that Hydra prints of the latter."""
    if ended.status == JobStatus.COMPLETED:
        return ended._return_value
    raise cast(BaseException, ended._return_value)


JobReturn.return_value = property(_returned, JobReturn.return_value.fset)  # type: ignore

RENAMED = {
    "train": {"norm.scale": "norm.use_weight", "watch_every": "diagnostics_every"},
    "evaluate": {"model": "pretrained", "checkpoint": "run"},
    "remove": {"checkpoint": "run"},
}
"""By command: fields that had other names before 0.2, and what they are called now."""


def any_terminal() -> None:
    """Let a letter that the terminal can't show (Δ, a spinner's dots) be a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def verb(verbs: Collection[str]) -> str | None:
    """The verb that the command line begins with, taken off it; None where it begins otherwise."""
    any_terminal()
    word = sys.argv[1] if sys.argv[1:] else ""
    if word in verbs:
        return sys.argv.pop(1)
    if difflib.get_close_matches(word, verbs, cutoff=0.7):
        with explained():
            raise unknown("verb", word, verbs)
    return None


def launch(
    app: str,
    schema: type[C],
    main: Callable[[C, Sequence[str]], float | None],
    examples: str = "",
    refused: Callable[[dict[str, Any], Sequence[str], Exception], None] | None = None,
) -> None:
    """Run `main(config, overrides)` on what configs/{app}.yaml and the command line say.

    Errors in what was asked are printed in a line or two, and the exit status is 2. In a sweep the
    other runs go on.

    Args:
        app: what stands behind `python -m`, or the verb behind that.
        schema: the application's config.
        main: does what was asked; a number that it returns is what a sweeper minimizes.
        examples: lines of the help, before the fields.
        refused: told of the configs of a sweep that `schema` refuses: values, overrides, error.
    """
    with explained():
        refuse_strange(app, schema, sys.argv[1:])
        user_files.load(imports(sys.argv[1:]))
    register(app, schema)
    if {"-h", "--help"} & set(sys.argv[1:]):
        with explained():
            print_help(app, schema, examples)
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's errors come here, not to its printer

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=app)
    def job(composed: Any) -> float | None:
        os.chdir(
            HydraConfig.get().runtime.cwd
        )  # whatever hydra.job.chdir says: paths are from here
        values: Any = OmegaConf.to_container(composed, resolve=True)
        asked = list(HydraConfig.get().overrides.task)
        several = HydraConfig.get().mode == RunMode.MULTIRUN
        with one_of_several(asked) if several else explained():
            compile_cache.use()
            if several and (swept := swept_here()):
                number = HydraConfig.get().job.num + 1
                sweep.begin(number, runs_of(swept), label(asked, swept))
            files = values.get("imports") or ()
            user_files.load([files] if isinstance(files, str) else files)
            try:
                choices = HydraConfig.get().runtime.choices
                refuse_misplaced(app, schema, choices, values)
                refuse_another_type(choices, values)
                config = build(schema, values)
            except (ValueError, TypeError) as error:
                if several and refused is not None:
                    refused(values, asked, error)
                raise
            return main(config, asked)

    with explained():
        compile_cache.use()  # and in each job, which a launcher may start in another process
        job()


def imports(arguments: Sequence[str]) -> list[str]:
    """The files of `imports=[…]`: what they register must be known before Hydra composes."""
    given = [argument for argument in arguments if argument.startswith("imports=")]
    found: list[str] = []
    for override in OverridesParser.create().parse_overrides(given):
        if not override.is_sweep_override():  # which Hydra refuses
            value: Any = override.value()
            found += [value] if isinstance(value, str) else value or []
    return found


def told(schema: type[C], arguments: Sequence[str]) -> C:
    """What the fields of a command line say to a verb that Hydra doesn't compose.

    It would take `datapath=` for a group of files.
    """
    values: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        require(not override.is_sweep_override(), f"{override.input_line}: expected one value")
        *groups, name = override.key_or_group.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = override.value()
    return build(schema, values)


def composed(app: str, schema: type[C], arguments: Sequence[str]) -> C:
    """The config of a command line that isn't this process's own."""
    refuse_strange(app, schema, arguments)
    user_files.load(imports(arguments))
    register(app, schema)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        values: Any = OmegaConf.to_container(compose(app, list(arguments)), resolve=True)
    return build(schema, values)


def swept_here() -> list[Override] | None:
    """What a sweep gives several values, where this process goes through all of them; else None."""
    found = HydraConfig.get()
    kinds = {found.runtime.choices[f"hydra/{kind}"] for kind in ("launcher", "sweeper")}
    given = [a for a in sys.argv[1:] if "=" in a and not a.startswith(("-", "hydra"))]
    given = [f"{key}={value}" for key, value in (found.sweeper.params or {}).items()] + given
    values = {o.get_key_element(): o for o in OverridesParser.create().parse_overrides(given)}
    swept = [o for o in values.values() if o.is_sweep_override()]
    if kinds != {"basic"} or any(isinstance(o.value(), Glob) for o in swept):
        return None
    return swept


def runs_of(swept: Sequence[Override]) -> int:
    """How many runs a sweep has."""
    return math.prod(len(list(o.sweep_string_iterator())) for o in swept)


def label(asked: Sequence[str], swept: Sequence[Override]) -> str:
    """What sets one run of a sweep apart from the others: "rmsnorm pre lr=1e-3 seed=0"."""
    keys = {o.get_key_element() for o in swept}
    pairs = [override.partition("=")[::2] for override in asked]
    return " ".join(
        value if key in ("norm", "placement", "optimizer") else f"{key.rpartition('.')[2]}={value}"
        for key, value in pairs
        if key in keys
    )


def refuse_strange(app: str, schema: type, arguments: Sequence[str]) -> None:
    """Refuse `--steps 10`, as other programs write it, an old name, and another program's group.

    And a value that is not UTF-8 (a path, in an older encoding): it could be written nowhere.

    Raises:
        ValueError: with the way to write it here, or with what there is.
    """
    fields = [path for path, _, _ in describe(schema())]
    names = {*fields, *(path.split(".")[0] for path in fields)}
    known = {*(name for name in names if "." not in name), *groups(app)}
    for argument in arguments:
        if not argument.isascii() and argument != argument.encode(errors="ignore").decode():
            raise ValueError(f"{argument!r} is not UTF-8: expected a path, or a value, that is")
        refuse_no_name(app, argument)
        refuse_path(app, argument)
        old, _, value = argument.partition("=")
        if new := RENAMED.get(app, {}).get(old):
            raise ValueError(f"{old}= is now {new}=: {new}={value}")
        name = argument.lstrip("-").partition("=")[0].replace("-", "_")
        if argument.startswith("--") and name in names:
            raise ValueError(f"{argument}: fields are written without dashes: {name}=VALUE")
        if name.isidentifier() and (CONFIGS / name).is_dir() and name not in known:
            raise unknown("key", name, known)
