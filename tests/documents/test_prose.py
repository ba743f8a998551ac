"""Pages that can be read: short lines, narrow tables, a README of one screen, the field's words."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("normlab", "train", "evaluate", "configs", "tests", "notebooks", "benchmarks", "docs")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
RESULTS = ROOT / "docs" / "results"
NAMES_OF_OLD = ("CHANGELOG.md", "renamed.py", "test_older.py", Path(__file__).name)
"""What speaks of old names to those who know them, and this file."""

OLD = re.compile(
    r"(?<![A-Za-z])(house|knobs?|heals?|healed|healing|kin|dear|young|harmed|imprecise|norm_skip|"
    r"norm_inner|asked\.yaml|by_first|SiteRows)(?![A-Za-z])",
    re.IGNORECASE,
)
"""Words of our own, also inside of an identifier: what to say in their place is in CHANGELOG."""


def prose(page):
    """(number, line) of a page's lines outside of code."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        code ^= line.lstrip().startswith("```")
        if not code:
            yield number, line


def table_row(line):
    return line.lstrip().startswith("|")


def test_no_line_is_long_and_no_table_is_wide():
    wrong = []
    for page in PAGES:
        for number, line in prose(page):
            columns = len(re.split(r"(?<!\\)\|", line.strip())) - 2
            if (columns > 7) if table_row(line) else (len(line) > 120):
                wrong.append(f"{page.relative_to(ROOT)}:{number}")
    assert wrong == []


def test_a_result_page_has_one_table_and_one_picture_and_answers_first():
    wrong = []
    for page in sorted(RESULTS.glob("*.md")):
        lines = [line for _, line in prose(page)]
        tables = sum(re.fullmatch(r"\|[ :|-]+\|", line) is not None for line in lines)
        pictures = sum(line.startswith("![") for line in lines)
        answer = lines.index("", 2) - 2
        length = len(page.read_text(encoding="utf-8").splitlines())
        if tables > 1 or pictures > 1 or answer > 3 or length >= 80:
            wrong.append((page.name, tables, pictures, answer, length))
    assert wrong == []


def test_every_picture_of_the_results_is_shown_or_linked():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [p.name for p in RESULTS.glob("figures/*.png") if f"figures/{p.name})" not in text] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


def test_words_are_the_fields():
    files = [f for folder in FOLDERS for f in (ROOT / folder).rglob("*")] + PAGES
    kinds = {".py", ".md", ".yaml", ".html", ".css", ".ipynb"}
    found = {
        f"{f.relative_to(ROOT)}: {match[0]}"
        for f in files
        if f.suffix in kinds and f.name not in NAMES_OF_OLD
        for match in OLD.finditer(f.read_text(encoding="utf-8"))
    }
    assert sorted(found) == []
