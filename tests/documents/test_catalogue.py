"""The reference table: complete, current, and each property it names has its test."""

import ast
import dataclasses
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from normlab.catalogue.pages import methods, reference
from normlab.norms import norms
from normlab.transforms import transforms
from normlab.transforms.remove import Frozen

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parent.parent.parent
SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|doi:10\.|\d+:\d+ \(\d{4}\)|\b[\w-]+/[\w-]+")
FORMULA = re.compile(r"\b(y|z|x|E|x₀|out) (=|←) |W\* = ")


@cache
def functions_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("kind", "name", "card"), [pytest.param(*m, id="-".join(m[:2])) for m in methods()]
)
def test_every_method_says_all_of_itself_and_its_test_exists_and_is_run(kind, name, card):
    """Its source: an arXiv id, a DOI, a journal's volume or a repository."""
    assert card is not None, f"{kind} {name} has no `card`: docs/howto/add-a-norm.md"
    for field in dataclasses.fields(card):
        assert getattr(card, field.name).strip(), f"{kind} {name} has no {field.name}"
    assert SOURCE.search(card.source), f"{kind} {name}: {card.source}"
    path, _, test = card.test.partition("::")
    assert path.startswith("tests/")
    assert test.startswith("test_")
    assert (ROOT / path).is_file(), f"{kind} {name}: no file {path}"
    found = functions_in(path)
    assert test in found, f"{kind} {name}: no test {card.test}"
    marks = {ast.unparse(d) for d in found[test].decorator_list}
    assert not any("skip" in mark or "xfail" in mark for mark in marks), (kind, name, marks)
    called = [n for n in ast.walk(found[test]) if isinstance(n, ast.Call)]
    helpers = [found[n.func.id] for n in called if getattr(n.func, "id", None) in found]
    text = "".join(ast.unparse(node) for node in (found[test], *helpers))
    assert "assert" in text, f"{kind} {name}: {card.test} asserts nothing"


CLASSES = {**{n: norms[n] for n in norms}, **{n: transforms[n] for n in transforms}}
CLASSES |= {"remove": Frozen}


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_a_docstring_and_a_row_of_its_own(name):
    """With its formula and its source; a row that is inherited would speak of another method."""
    doc = vars(CLASSES[name])["__doc__"] or ""
    assert FORMULA.search(doc), f"{name}: no formula in its docstring"
    assert SOURCE.search(doc), f"{name}: no source in its docstring"
    assert "card" in vars(CLASSES[name]), f"{name} has no row of its own"


def test_no_two_methods_are_told_apart_by_one_test():
    counts = Counter(card.test for _, _, card in methods())
    assert not [test for test, count in counts.items() if count > 1]


def test_docs_norms_md_is_what_the_registries_say():
    written = (ROOT / "docs/norms.md").read_text(encoding="utf-8")
    assert written == reference(), "python -m normlab.catalogue.pages > docs/norms.md"
