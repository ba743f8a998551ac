"""docs/house.md has a line for every file, the file's own; what README shows is a part of it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [f for d in ("normlab", "train", "evaluate") for f in sorted((ROOT / d).rglob("*.py"))]


def tree(page):
    """The lines of a page, spaces made one."""
    return [" ".join(line.split()) for line in (ROOT / page).read_text().splitlines()]


HOUSE = tree("docs/house.md")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_file_has_its_line(file):
    doc = ast.get_docstring(ast.parse(file.read_text()))
    assert doc, f"{file} has no docstring"
    name = f"{file.parent.name}/" if file.name == "__init__.py" else file.name
    assert " ".join([name, doc.split("\n")[0].rstrip(".")]) in HOUSE


def test_no_line_is_of_a_file_that_is_gone():
    names = {f.name for f in FILES}
    listed = {line.split()[0] for line in HOUSE if line}
    assert {name for name in listed if name.endswith(".py")} <= names


def test_the_readme_shows_packages_by_the_same_lines():
    packages = [f"{f.parent.name}/" for f in FILES if f.name == "__init__.py"]
    shown = [line for line in tree("README.md") if line.partition(" ")[0] in packages]
    assert {line.partition(" ")[0] for line in shown} >= {"normlab/", "scaling/", "train/"}
    assert set(shown) <= set(HOUSE)
