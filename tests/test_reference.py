"""The reference table: complete, current, and each property it names has its test."""

import ast
import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from normlab.reference import methods, reference

ROOT = Path(__file__).parent.parent
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.|\d+:\d+ \(\d{4}\)|\b[\w-]+/[\w-]+")


@cache
def functions_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("kind", "name", "about"), [pytest.param(*m, id="-".join(m[:2])) for m in methods()]
)
def test_every_method_says_all_of_itself_and_its_test_exists(kind, name, about):
    for field in dataclasses.fields(about):
        assert getattr(about, field.name).strip(), f"{kind} {name} has no {field.name}"
    path, _, test = about.test.partition("::")
    assert test in functions_in(path), f"{kind} {name}: no test {about.test}"


@pytest.mark.parametrize(
    ("kind", "name", "about"), [pytest.param(*m, id="-".join(m[:2])) for m in methods()]
)
def test_every_source_can_be_found_and_every_property_is_run(kind, name, about):
    """An arXiv id, a DOI, a journal's volume or a repository; a test that pytest collects."""
    assert SOURCE.search(about.source), f"{kind} {name}: {about.source}"
    path, _, test = about.test.partition("::")
    assert path.startswith("tests/test_")
    assert test.startswith("test_")
    marks = {ast.unparse(d) for d in functions_in(path)[test].decorator_list}
    assert not any("skip" in mark or "xfail" in mark for mark in marks), (kind, name, marks)


def test_docs_norms_md_is_what_the_registries_say():
    written = (ROOT / "docs/norms.md").read_text(encoding="utf-8")
    assert written == reference(), "python -m normlab.reference > docs/norms.md"
