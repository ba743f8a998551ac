"""`python -m evaluate list`: everything that has a name is in it."""

import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from normlab.commands import listing
from normlab.commands.groups import CONFIGS, options
from normlab.config import field
from normlab.evaluation.claims import metrics
from normlab.evaluation.protocols import protocols
from normlab.model import placements
from normlab.norms import Norm, NormConfig, norms
from normlab.numerics import Precision
from normlab.pretrained import PACKAGES
from normlab.results.column import Column
from normlab.scaling import scale_rules
from normlab.transforms import transforms

REGISTERED = {
    "norms": norms,
    "placements": placements,
    "rules": scale_rules,
    "transforms": transforms,
    "protocols": protocols,
    "pretrained": PACKAGES,
    "metrics": metrics,
}
FILES = {
    "norms": "norm",
    "placements": "placement",
    "models": "model",
    "experiments": "experiment",
    "claims": "claims",
}


def listed(capsys, *arguments):
    """Name → line of what is printed in a pipe; the heads of kinds left out."""
    listing.main(list(arguments))
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("  ")]
    return {name: text.strip() for name, _, text in (x.strip().partition("  ") for x in lines)}


@pytest.mark.parametrize("kind", REGISTERED)
def test_every_registered_name_is_listed_with_a_line(capsys, kind):
    found = listed(capsys, kind)
    assert set(REGISTERED[kind]) <= set(found)
    assert all(found.values())


@pytest.mark.parametrize("kind", FILES)
def test_every_file_of_a_group_is_listed(capsys, kind):
    assert {p.stem for p in (CONFIGS / FILES[kind]).glob("*.yaml")} <= set(listed(capsys, kind))


@pytest.mark.parametrize("group", ["model", "data", "experiment", "claims"])
def test_the_line_of_a_file_is_a_whole_sentence(group):
    for path in (CONFIGS / group).glob("*.yaml"):
        first = next(x for x in path.read_text().splitlines() if not x.startswith("# @"))
        assert first.startswith("# "), path
        assert first.endswith("."), path


def test_what_is_listed_can_be_asked_for(capsys):
    orders = [
        name.replace("POSTFIX", "0_1_a").removesuffix("K") + "8" * name.endswith("K")
        for name in listed(capsys, "orders")
    ]
    for order in orders:
        for rule in listed(capsys, "rules"):
            assert Column.parse(f"fp16:{order}+{rule}").rule == rule
    formats = [name for name in listed(capsys, "formats") if name[0] in "fb"]
    assert [str(Precision.parse(name)) for name in formats] == formats
    assert sorted(listed(capsys, "data")) == options("data")


def test_formats_are_told_by_their_numbers(capsys):
    assert "largest 65504, smallest normal 2^-14, smallest 2^-24" in listed(capsys)["fp16"]


def test_a_norm_without_a_row_in_the_reference_shows_its_docstring(capsys):
    @dataclass(frozen=True)
    class ToyConfig(NormConfig):
        type: str = field("toy", "norm type")

    @norms.register("toy")
    class Toy(Norm):
        """A toy, for
        this test only. Nothing more.

        A paragraph.
        """

        Config = ToyConfig

    try:
        assert listed(capsys, "norms")["toy"] == "A toy, for this test only"
    finally:
        norms.remove("toy")


def test_a_terminal_gets_wrapped_tables_that_lose_nothing():
    page = io.StringIO()
    listing.main([], Console(file=page, force_terminal=True, width=80, color_system=None))
    shown = page.getvalue()
    assert max(map(cell_len, shown.splitlines())) <= 80
    for kind, registry in REGISTERED.items():
        assert f"\n{kind}" in f"\n{shown}"
        assert all(f"  {name}" in shown for name in registry)
    assert "[x, −x] doubling" in shown  # brackets are no markup


def test_an_unknown_kind_is_an_error_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as end:
        listing.main(["nroms"])
    assert end.value.code == 2
    assert "unknown kind 'nroms'. Did you mean 'norms'?" in capsys.readouterr().err


@pytest.mark.system
def test_the_command_needs_nothing_that_is_slow_to_import():
    code = (
        "import sys, runpy; sys.argv = ['evaluate', 'list', 'norms']\n"
        "try: runpy.run_module('evaluate', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'scipy.stats', 'orbax.checkpoint', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rmsnorm" in done.stdout
