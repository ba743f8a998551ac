"""The page of verdicts is what the committed records say."""

from pathlib import Path

import pytest

from normlab.commands.claims import CLAIMS, names, verdicts
from normlab.evaluation.claims.page import page

pytestmark = pytest.mark.documents

PAGE = Path(__file__).parent.parent.parent / "docs/results/verdicts.md"


def test_the_page_of_verdicts_is_what_the_committed_records_say():
    made = page(verdicts([CLAIMS / f"{name}.yaml" for name in names()]))
    assert PAGE.read_text(encoding="utf-8") == made, "python -m evaluate claims --page FILE"
