"""The page of verdicts is what the committed records say."""

from pathlib import Path

import pytest

from normlab.commands.claims import CLAIMS, commands, names, verdicts
from normlab.evaluation.claims.page import page

pytestmark = pytest.mark.documents

ROOT = Path(__file__).parent.parent.parent


def test_the_page_of_verdicts_is_what_the_committed_records_say():
    written = Path("docs/results/verdicts.md")
    told = verdicts([CLAIMS / f"{name}.yaml" for name in names()])
    made = page(told, commands([], Path("configs/claims"), written))
    assert (ROOT / written).read_text(encoding="utf-8") == made, commands([], CLAIMS, written)[0]
