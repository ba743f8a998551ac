"""Where each number comes from: the command that asks for it again, and all that is known of it."""

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from normlab.pretrained import PACKAGES
from normlab.report.sources import Trained
from normlab.results import Record
from normlab.results.record import OK
from normlab.results.settings import flattened, of_run

BULKY = {"ranges": ("sites",), "result": ("window_nll", "window_tokens", "window_words")}
"""Fields of a record that the page doesn't show."""
CONFIGS = ("config", "norm_config", "placement_config")
"""Fields of a record's model that are in its run's config already, if it is of a run."""
PLAIN = r"(?!(?:null|true|false|nan|inf)$)[A-Za-z./][\w./:+-]*"
"""What Hydra takes for a text without quotes."""


class Facts(NamedTuple):
    """A command and what is known: field → value."""

    command: str
    known: dict[str, str]


def run_facts(run: Trained) -> Facts:
    """How a run was asked for, how it ended, with what it was trained, its whole config."""
    asked = [str(word) for word in run.asked]
    command = shlex.join(["python", "-m", "train", *asked]) if asked else ""
    return Facts(command, _known({**run.record, **_sessions(run.provenance), **run.config}))


def _sessions(provenance: dict[str, Any]) -> dict[str, Any]:
    """A run's provenance, that of its sessions by the step from which they went on."""
    sessions = provenance.get("sessions", [])
    steps = {f"from step {s.get('from_step', 0)}": s for s in sessions}
    found = {k: v for k, v in provenance.items() if k != "sessions"}
    return found | (steps if len(sessions) > 1 else dict(*sessions))


def record_facts(r: Record) -> Facts:
    """What asks for a record's number again, and what it depends on."""
    fields = dataclasses.asdict(r)
    facts = {k: v for k, v in r.model.facts.items() if not k.startswith(("config", "training"))}
    fields["model"]["facts"] = facts
    for group, names in (BULKY | {"model": CONFIGS if of_run(r) else ()}).items():
        fields[group] = {k: v for k, v in fields[group].items() if k not in names}
    return Facts(command(r), _known(fields))


def _known(values: dict[str, Any]) -> dict[str, str]:
    return {k: str(v) for k, v in flattened(values).items() if v not in (None, "", [], {})}


def command(r: Record) -> str:
    """What asks for a number again, as one types it; "" for what was not evaluated."""
    text, facts = r.text, r.model.facts
    if text.protocol is None or (r.status != OK and "source" not in facts):
        return ""
    mesh = r.provenance.environment.get("mesh", {})
    fields = {
        "precision": f"[{r.precision}]",
        "transform": f"[{r.model.transform}]" if r.model.transform != "none" else None,
        "data.corpus": text.dataset,
        "split": text.split,
        "protocol": text.protocol,
        "window": text.window,
        "max_windows": text.max_windows,
        "calibration_windows": (r.provenance.calibration or {}).get("windows"),
        **{f"mesh.{name}": mesh.get(name) for name in ("data", "model", "shard_parameters")},
    }
    given = [f"{name}={value}" for name, value in fields.items() if value is not None]
    return shlex.join(["python", "-m", "evaluate", source(facts), *given])


def source(facts: dict[str, Any]) -> str:
    """What names the model: a run, a registered name, a Hugging Face directory, a GGUF file."""
    where, files = str(facts.get("source", "")), facts.get("sha256", {})
    if "family" not in facts:
        return f"run={hydra_text(where)}"
    known = {package.sha256: name for name, package in PACKAGES.items()}
    if names := [known[digest] for digest in files.values() if digest in known]:
        return f"pretrained={names[0]}"
    if where.endswith(".safetensors"):  # a directory with a single file
        return f"pretrained={hydra_text(f'hf:{Path(where).parent}')}"
    kind = "hf" if all(name.endswith(".safetensors") for name in files) else "gguf"
    return f"pretrained={hydra_text(f'{kind}:{where}')}"


def hydra_text(text: str) -> str:
    """A text as a value of Hydra's, in quotes where it would read something else without."""
    if re.fullmatch(PLAIN, text, re.ASCII | re.IGNORECASE):
        return text
    # A quote has a backslash before it, and those that stand before a quote are doubled.
    return '"' + re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + (r"\"" if m[2] else ""), text) + '"'
