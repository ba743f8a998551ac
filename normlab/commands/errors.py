"""Errors in what was asked, said in a line or two, and the exit status."""

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from normlab.registry import unknown
from normlab.runs import user_files

LIBRARY = Path(__file__).parent.parent
TRACEBACK = "NORMLAB_TRACEBACK"
"""Environment variable: set to 1 for the traceback behind an error's one or two lines."""


def as_typed(text: str) -> str:
    """A text with the commands in it as this process was started: by console command or `-m`."""
    console = Path(sys.argv[0]).name.startswith("normlab-")
    return text.replace("python -m ", "normlab-") if console else text


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
        print(as_typed(f"error: {explain(error)}{where}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
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


def _in_user_file(error: BaseException) -> str | None:
    """The last line of a user's own file that an error came through: "my_norms.py, line 12"."""
    frames = [
        (Path(f.f_code.co_filename), line) for f, line in traceback.walk_tb(error.__traceback__)
    ]
    own = [f"{file.name}, line {line}" for file, line in frames if str(file) in user_files.loaded()]
    return own[-1] if own else None


def _about_what_was_asked(error: Exception) -> bool:
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError, RunFailed)):
        return True
    if _in_user_file(error):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in = Path(frame.f_code.co_filename)
    return raised_in.is_relative_to(LIBRARY) and isinstance(error, (ValueError, TypeError))


def explain(error: BaseException) -> str:
    """An error in one or two lines: what was given, what was expected, what is nearest."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return str(unknown(group or "config", name, error.options))
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        told = "expected FIELD=VALUE without spaces, or a verb; --help says which there are"
        return f"{error.override!r}: {told}"
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
    if place := _in_user_file(error):
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{place}: {type(error).__name__}: {first}"
    said = str(cause or error).strip()
    if said.startswith("Ambiguous value"):  # Hydra's three ways out, the likeliest first
        argument = said.split("'")[1]
        name, _, values = argument.partition("=")
        return f"{argument}: several values are a sweep: add -m; a list is {name}=[{values}]"
    if isinstance(error, OverrideParseException):
        name, _, value = error.override.partition("=")
        quoted = shlex.quote(f'{name}="{value.replace(chr(34), "")}"')
        return f"{error.override!r}: the value has a sign that must stand in quotes: {quoted}"
    return "\n".join(said.split("\n    full_key")[0].split("\n")[:2])


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted paths of all fields below a mapping."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"
