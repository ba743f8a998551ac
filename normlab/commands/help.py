"""`--help`: examples, then every field with its default and its description."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from normlab.commands import compile_cache
from normlab.commands.errors import TRACEBACK, as_typed
from normlab.commands.groups import groups, options
from normlab.config import describe
from normlab.norms import norms
from normlab.registry import choice

VERBS = {"remove": "train remove", "golden": "evaluate golden", "export": "evaluate export"}
"""How a verb with fields of its own is written."""


def print_help(app: str, schema: type, examples: str = "") -> None:
    """Examples, then every field with its default and its description.

    The fields of a norm are those of the type that the command line names.
    """
    command = as_typed(f"python -m {VERBS.get(app, app)}")
    print(f"{command} [FIELD=VALUE ...]")
    print(as_typed(textwrap.indent(examples.rstrip(), "  ")))
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
        print(f"\nThe fields of another norm: {command} norm=NAME --help", end="")
    print(
        as_typed("\nWhat stands behind each name: python -m evaluate list\n")
        + f"More of Hydra (sweeps with -m, launchers): {command} --hydra-help\n"
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
