"""Errors in what was asked, said in a line or two, and the exit status."""

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from normlab.registry import unknown
from normlab.runs import user_files

LIBRARY, HYDRA = Path(__file__).parent.parent, Path(hydra.__file__).parent
OTHER_WORDS = {
    "optimizer.lr": ("learning_rate", "max_lr", "learningrate"),
    "optimizer.warmup": ("warmup_steps", "num_warmup_steps", "warmup_iters"),
    "batch": ("batch_size", "train_batch_size", "per_device_train_batch_size"),
    "accumulate": ("gradient_accumulation_steps", "grad_accum"),
    "steps": ("max_steps", "num_steps", "max_iters", "epochs", "num_train_epochs"),
    "window": ("seq_len", "seq_length", "block_size", "context_length", "sequence_length"),
    "model.layers": ("num_layers", "n_layer", "n_layers", "num_hidden_layers", "depth"),
    "model.width": ("hidden_size", "d_model", "n_embd", "dim", "embed_dim"),
    "mesh.data": ("devices", "num_devices", "data_parallel"),
    "mesh.model": ("tensor_parallel", "model_parallel"),
    "model.heads": ("num_heads", "n_head", "n_heads", "num_attention_heads"),
}
"""Fields, and what other programs call them."""

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
        print("interrupted; the same command goes on from what is stored", file=sys.stderr)
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
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError, RunFailed, YAMLError)):
        return True
    if _in_user_file(error):
        return True
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if isinstance(error, UnicodeDecodeError):
        return _config_file(error) is not None
    raised_in = Path(frame.f_code.co_filename)
    ours = raised_in.is_relative_to(LIBRARY) or raised_in.is_relative_to(HYDRA)
    return ours and isinstance(error, (ValueError, TypeError))


def _config_file(error: BaseException) -> str | None:
    """The file of a config group that Hydra was reading."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [f.f_locals["full_path"] for f in frames if "full_path" in f.f_locals]
    return str(found[-1]) if found else None


def explain(error: BaseException) -> str:
    """An error in one or two lines: what was given, what was expected, what is nearest."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        said = str(unknown(group or "config", name, error.options))
        return said + " One of your own: imports=[FILE.py]." * (group in ("norm", "placement"))
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
        deeper = _deeper(str(key), known)
        if deeper:
            return f"unknown key {key!r}. Did you mean {' or '.join(map(repr, deeper))}?"
        return str(unknown(f"key of {group}" if group else "key", key, known))
    if isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        tab = " (a tab: YAML indents by spaces)" if "'\\t'" in str(error.problem) else ""
        return f"{mark.name}, line {mark.line + 1}: {error.problem}{tab}"
    if isinstance(error, UnicodeDecodeError) and (file := _config_file(error)):
        return f"{file}: not UTF-8 ({error.reason}); expected a text that is saved as UTF-8"
    if place := _in_user_file(error):
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{place}: {type(error).__name__}: {first}"
    said = str(cause or error).strip()
    if said.startswith("Cannot merge DictConfig with ListConfig"):
        return "a list was given for a group of fields: expected GROUP.FIELD=VALUE of each"
    if said.startswith("Ambiguous value"):  # Hydra's three ways out, the likeliest first
        argument = said.split("'")[1]
        return f"{argument}: several values are a sweep: add -m; a list stands in brackets"
    if isinstance(error, OverrideParseException):
        name, _, value = error.override.partition("=")
        quoted = shlex.quote(f'{name}="{value.replace(chr(34), "")}"')
        return f"{error.override!r}: the value has a sign that must stand in quotes: {quoted}"
    return "\n".join(said.split("\n    full_key")[0].split("\n")[:2])


def _deeper(key: str, known: Mapping[str, Any]) -> list[str]:
    """Dotted fields that are called so in their group, or that other programs call so."""
    found = list(_leaves(known))
    deeper = [path for path in found if path.endswith(f".{key}")]
    return deeper or [path for path in found if key in OTHER_WORDS.get(path, ())]


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted paths of all fields below a mapping."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"
