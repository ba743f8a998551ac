"""`--help`: examples, then every field with its default and its description."""

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from normlab.commands import compile_cache
from normlab.commands.errors import TRACEBACK, as_typed
from normlab.commands.groups import OWN_FIELDS, TYPED, groups, options
from normlab.config import describe
from normlab.registry import choice

VERBS = {"remove": "train remove", "tune": "train tune"} | {
    verb: f"evaluate {verb}" for verb in ("golden", "export", "plan")
}
"""How a verb with fields of its own is written."""


def print_help(app: str, schema: type, examples: str = "") -> None:
    """Examples, then every field with its default and its description.

    The fields of a norm are those of the type that the command line names.
    """
    try:
        _print_help(app, schema, examples)
        sys.stdout.flush()
    except BrokenPipeError:  # `head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_help(app: str, schema: type, examples: str) -> None:
    command = as_typed(f"python -m {VERBS.get(app, app)}")
    print(f"{command} [FIELD=VALUE ...]")
    print(as_typed(textwrap.indent(examples.rstrip(), "  ")))
    fields = described(schema(), _asked())
    for _, part in groupby(fields, lambda field: field[0].rpartition(".")[0]):
        print()
        for path, value, text in part:
            print(entry(f"{path}={shown(value)}", text))
    print("\nGroups: a name chooses several fields at once" if groups(app) else "")
    for group in groups(app):
        print(entry(f"{group}=", ", ".join(options(group))))
    for group in OWN_FIELDS.keys() & groups(app).keys():
        print(f"\nThe fields of another {group}: {command} {group}=NAME --help", end="")
    print(
        as_typed("\nWhat stands behind each name: python -m evaluate list\n")
        + f"More of Hydra (sweeps with -m, launchers): {command} --hydra-help\n"
        f"The traceback behind an error: {TRACEBACK}=1\n"
        f"Compiled programs are kept in NORMLAB_CACHE/xla: not with {compile_cache.SWITCH}=off"
    )


def _asked() -> dict[str, Any]:
    """By group the config of the type that the command line names."""
    found: dict[str, Any] = {}
    for group, made in OWN_FIELDS.items():
        names = [a.partition("=")[2] for a in sys.argv[1:] if a.startswith(f"{group}=")]
        if names and choice(group, names[-1], options(group)) in TYPED[group]:
            found[group] = made(names[-1])
    return found


def described(config: Any, chosen: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """`describe`, with the fields of types that were chosen in the place of the default ones'."""
    for path, value, text in describe(config):
        group = path.partition(".")[0]
        if group not in chosen:
            yield path, value, text
        elif path == f"{group}.type":
            yield from describe(chosen[group], f"{group}.")


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
