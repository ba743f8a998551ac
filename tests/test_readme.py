"""The README's tree has a line for every file, and the line is the file's own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FILES = [f for d in ("normlab", "train", "evaluate") for f in sorted((ROOT / d).rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_every_file_has_its_line(file):
    doc = ast.get_docstring(ast.parse(file.read_text()))
    assert doc, f"{file} has no docstring"
    name = f"{file.parent.name}/" if file.name == "__init__.py" else file.name
    line = " ".join([name, doc.split("\n")[0].rstrip(".")])
    assert line in [" ".join(found.split()) for found in README.splitlines()]
