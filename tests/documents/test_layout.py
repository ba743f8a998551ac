"""README's layout names every package by its own first line; imports only point one way."""

import ast
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("normlab", "train", "evaluate")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


def tree(page):
    """What a page's tree says of each folder of the three packages."""
    found, parent = {}, ""
    for line in (ROOT / page).read_text().splitlines():
        if match := re.fullmatch(r"(  )?(\w+)/  +(.*)", line):
            parent = parent if match[1] else match[2]
            found[f"{parent}/{match[2]}" if match[1] else parent] = match[3]
    return {path: said for path, said in found.items() if path.partition("/")[0] in PACKAGES}


def first_line(file):
    doc = ast.get_docstring(ast.parse(file.read_text()))
    assert doc, f"{file} has no docstring"
    return doc.split("\n")[0].rstrip(".")


def test_the_readme_names_every_folder_by_its_own_first_line():
    folders = [f.parent for f in FILES if f.name == "__init__.py"]
    own = {f.relative_to(ROOT).as_posix(): first_line(f / "__init__.py") for f in folders}
    assert tree("README.md") == {path: said for path, said in own.items() if path.count("/") < 2}


def test_every_file_says_what_it_is():
    assert all(map(first_line, FILES))


def imports():
    """(folder, folder) of every import from one folder of the library to another."""
    for file in FILES:
        here = file.relative_to(ROOT).parts[:2]
        for node in ast.walk(ast.parse(file.read_text())):
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [n.name for n in node.names] if isinstance(node, ast.Import) else []
            for name in found:
                there = tuple(name.split(".")[:2])
                if there[0] in PACKAGES and len(there) == 2 and len(here) == 2 and there != here:
                    yield here, there


def test_no_two_folders_import_each_other_not_even_through_others():
    """And the library imports neither command: they would be above all that they import."""
    above: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for here, there in imports():
        above.setdefault(here, set()).add(there)

    def walk(folder, path):
        assert folder not in path, " imports ".join("/".join(p) for p in [*path, folder])
        for there in above.get(folder, ()):
            walk(there, (*path, folder))

    for folder in above:
        walk(folder, ())
    assert not {there[0] for here, there in imports() if here[0] == "normlab"} - {"normlab"}


def test_no_test_imports_from_another_test():
    """What several files share lies in tests/support/ or in conftest.py."""
    imported = re.compile(r"^ *(?:from|import) tests\.(?!conftest\b|support\b)", re.MULTILINE)
    files = (ROOT / "tests").rglob("*.py")
    assert [str(f.relative_to(ROOT)) for f in files if imported.search(f.read_text())] == []
