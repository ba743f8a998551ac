"""Each family's log-probabilities against those of `transformers` in float64, kept in a file."""

import numpy as np
import pytest

from normlab import pretrained
from normlab.pretrained.families import families
from tests.support.family_golden import CASES, STEP, TOKENS, golden, write
from tests.support.small_checkpoints import log_probs

GOLDEN = golden()


def test_every_family_has_a_case():
    assert GOLDEN.keys() == CASES.keys()
    assert {case["config"]["model_type"] for case in GOLDEN.values()} == {*families} - {"bert"}


@pytest.mark.system
@pytest.mark.parametrize("case", CASES)
def test_log_probabilities_are_those_of_transformers(case, tmp_path):
    kept = GOLDEN[case]
    folder = write(tmp_path / "m", kept["config"], kept["shapes"])
    found = np.float64(log_probs(pretrained.load(f"hf:{folder}"), TOKENS))
    expected = np.array(kept["log_probs"])
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found[..., ::STEP], expected, rtol=0, atol=1e-4)
