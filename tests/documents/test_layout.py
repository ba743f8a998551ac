"""docs/house.md has a line for every file, the file's own; what README shows is a part of it."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("normlab", "train", "evaluate")


def tree(page):
    """What a page's tree says of each path."""
    found, folders = {}, []
    for line in (ROOT / page).read_text().splitlines():
        if match := re.fullmatch(r"( *)(\w+/|\w+\.py)  +(.*)", line):
            folders = folders[: len(match[1]) // 2]
            found["/".join([*folders, match[2].rstrip("/")])] = match[3]
            folders.append(match[2].rstrip("/"))
    return {path: said for path, said in found.items() if path.partition("/")[0] in PACKAGES}


def own_lines():
    """What each file says of itself, a package by its `__init__.py`."""
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            doc = ast.get_docstring(ast.parse(file.read_text()))
            assert doc, f"{file} has no docstring"
            path = file.parent if file.name == "__init__.py" else file
            yield path.relative_to(ROOT).as_posix(), doc.split("\n")[0].rstrip(".")


def test_every_file_has_its_line_and_every_line_its_file():
    assert tree("docs/house.md") == dict(own_lines())


def test_the_readme_shows_packages_by_the_same_lines():
    shown = tree("README.md")
    assert {"normlab", "normlab/scaling", "train"} <= shown.keys()
    assert shown.items() <= tree("docs/house.md").items()


def test_no_test_imports_from_another_test():
    """What several files share lies in tests/support/ or in conftest.py."""
    imported = re.compile(r"^ *(?:from|import) tests\.(?!conftest\b|support\b)", re.MULTILINE)
    files = (ROOT / "tests").rglob("*.py")
    assert [str(f.relative_to(ROOT)) for f in files if imported.search(f.read_text())] == []
