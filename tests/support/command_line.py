"""Command lines: the config that one becomes, and all that README and the documentation have."""

import copy
import re
import subprocess
import tempfile
from functools import cache
from itertools import zip_longest
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from normlab.commands.groups import CONFIGS, register
from normlab.config import build
from normlab.evaluation.config import EvaluateConfig
from normlab.training.config import TrainConfig
from normlab.training.removal import RemoveConfig

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "remove": RemoveConfig,
}


def composed(app, *overrides):
    """What `python -m app overrides` hands to its main."""
    return build(SCHEMAS[app], values(app, overrides))


def values(app, overrides=()):
    """The same before it is built: a dictionary."""
    register(app, SCHEMAS[app])
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        return OmegaConf.to_container(compose(app, list(overrides)), resolve=True)


def sweep(*overrides):
    """Overrides of some of its runs, in which each value stands once at least."""
    several = [
        [f"{o.key_or_group}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in OverridesParser.create().parse_overrides(list(overrides))
    ]
    for run in zip_longest(*several):
        yield [value or own[-1] for value, own in zip(run, several, strict=True)]


@cache
def _evaluate_values():
    return values("evaluate")


def evaluation(*arguments):
    """What `python -m evaluate arguments` is told, Hydra's grammar and its group included."""
    given = copy.deepcopy(_evaluate_values())
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        if override.key_or_group == "data":
            file = CONFIGS / "data" / f"{override.value()}.yaml"
            given["data"] |= yaml.safe_load(file.read_text(encoding="utf-8"))
            continue
        *groups, name = override.key_or_group.split(".")
        place = given
        for group in groups:
            place = place[group]
        place[name] = override.value()
    return build(EvaluateConfig, OmegaConf.to_container(OmegaConf.create(given)))


FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECORD = 'python() { for a in "$XLA_FLAGS" "$@"; do printf "%s\\t" "$a"; done; echo; }\n'
MUTE = "make() { :; }; git() { :; }; pip() { :; }; cd() { :; }\n"


def pages():
    """README and the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def documented():
    """What bash hands to `python` in the fenced blocks of all pages, loops and variables included.

    Before it, XLA's flags. Blocks that name a language are not for this machine: Python, YAML, and
    (sh) what needs a launcher, a cluster, or two processes at once; those have tests of their own.
    """
    script = [RECORD, MUTE]
    for page in pages():
        for language, block in FENCED.findall(page.read_text(encoding="utf-8")):
            if not language and re.search(r"^ *python ", block, re.MULTILINE):
                script.append(f"(\n{block}\n) || {{ echo a block of {page} >&2; exit 1; }}\n")
    with tempfile.TemporaryDirectory() as empty:
        bash = ["bash", "-c", "".join(script)]
        done = subprocess.run(bash, cwd=empty, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [tuple(line.rstrip("\t").split("\t")) for line in done.stdout.splitlines()]
    return [c for c in found if c[1] == "-m" and c[2] in ("train", "evaluate")]
