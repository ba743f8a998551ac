"""The documentation: links lead somewhere, pages are found (`make docs` builds the site)."""

import importlib
import re
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
HISTORY = ("LOG.md", "CHANGELOG.md")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")

FOLDERS = "tests|benchmarks|notebooks|configs|normlab|train|evaluate|docs"
FILE = re.compile(rf"(?<![\w/.*-])(?:{FOLDERS})/[\w/.-]+\.(?:py|yaml|json|ipynb|md|csv)\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_into_the_repository_lead_somewhere(page):
    links = [x for x in LINK.findall(page.read_text()) if "://" not in x]
    dead = [x for x in links if not (page.parent / x.partition("#")[0]).exists()]
    assert dead == []


def test_files_that_a_page_names_are_there():
    named = {(p, f) for p in PAGES if p.name not in HISTORY for f in FILE.findall(p.read_text())}
    assert named
    assert [(page.name, file) for page, file in sorted(named) if not (ROOT / file).exists()] == []


def test_every_page_is_in_the_navigation():
    def pages(nav):
        for item in nav:
            if isinstance(item, str):
                yield item
            else:
                for value in item.values():
                    yield from pages(value) if isinstance(value, list) else [value]

    listed = set(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    there = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert listed == there


def test_what_the_api_pages_name_can_be_imported_and_lists_what_it_offers():
    named = [
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    assert named
    for name in named:
        module = importlib.import_module(name)
        assert all(hasattr(module, offered) for offered in module.__all__)
