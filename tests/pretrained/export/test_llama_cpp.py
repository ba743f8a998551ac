"""GGUF files that we write, read by llama.cpp itself (`pip install llama-cpp-python`)."""

import numpy as np
import pytest

from tests.support.family_golden import TOKENS
from tests.support.gguf_files import CASES, TEXT, exported, kept_case
from tests.support.reference_forward import log_softmax
from tests.support.small_checkpoints import log_probs

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("default"),  # other packages' warnings are theirs
]
FLOAT32 = 0  # of its cache of keys and values, which it has in half by itself
TABLED = 5e-3  # its GELU is a table of halves


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_model_that_was_written(case, tmp_path):
    """But for the window of Phi 3, which it reads and leaves out (src/models/phi3.cpp)."""
    kept = kept_case(case)
    if kept["config"]["model_type"] == "phi3":
        kept["config"]["sliding_window"] = None
    lm, path = exported(tmp_path, kept, "float32")
    told = {"n_ctx": 64, "n_threads": 1, "logits_all": True, "verbose": False}
    theirs = llama_cpp.Llama(str(path), **told, type_k=FLOAT32, type_v=FLOAT32)
    found = []
    for row in TOKENS.tolist():
        theirs.reset()
        theirs.eval(row)
        found.append(np.array(theirs.scores[: len(row)]))
    gelu = lm.model.config.activation != "silu"
    far = np.abs(log_softmax(np.array(found)) - log_probs(lm, TOKENS)).max()
    print(f"{case}: largest |Δ log p| {far:.1e}")
    assert far < (TABLED if gelu else 1e-5)
    ids = theirs.tokenize(TEXT.encode(), add_bos=False, special=True)
    assert ids == lm.tokenizer.encode(TEXT).ids.tolist()
    theirs.close()
