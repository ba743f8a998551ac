"""The reference table: complete, current, and each property it names has its test."""

import ast
import dataclasses
from functools import cache
from pathlib import Path

import pytest

from normlab.reference import methods, reference

ROOT = Path(__file__).parent.parent


@cache
def functions_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("kind", "name", "about"), [pytest.param(*m, id="-".join(m[:2])) for m in methods()]
)
def test_every_method_says_all_of_itself_and_its_test_exists(kind, name, about):
    for field in dataclasses.fields(about):
        assert getattr(about, field.name).strip(), f"{kind} {name} has no {field.name}"
    path, _, test = about.test.partition("::")
    assert test in functions_in(path), f"{kind} {name}: no test {about.test}"


def test_docs_norms_md_is_what_the_registries_say():
    written = (ROOT / "docs/norms.md").read_text(encoding="utf-8")
    assert written == reference(), "python -m normlab.reference > docs/norms.md"
