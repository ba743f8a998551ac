"""Directories that we write, in `transformers` itself: every family, as it is and rewritten."""

import numpy as np
import pytest

from normlab import pretrained
from normlab.pretrained.export.fit import fitted
from normlab.pretrained.export.huggingface import write_config, write_weights
from normlab.transforms import DoesNotApply, apply
from tests.conftest import forward, same_trees, tiny_model
from tests.support.family_golden import TOKENS, golden, write
from tests.support.reference_forward import log_softmax

GOLDEN = golden()
CHAINS = ("none", "rescale:0.25", "rescale:0.25+fold")


def exported(folder, fit, dtype="float32", shard_bytes=2e9):
    folder.mkdir()
    write_weights(folder, fit, dtype, shard_bytes)
    write_config(folder, fit, dtype, {"bos_token_id": None, "eos_token_id": None})
    return folder


@pytest.mark.extended
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", GOLDEN)
def test_transformers_load_it_and_compute_the_same(case, tmp_path):
    """In float64, log-probabilities within 1e-4 of ours, whatever the chain."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kept = GOLDEN[case]
    if case == "olmo3":  # transformers 5.24 takes another base where the two kinds are one
        kinds = dict.fromkeys(
            ("full_attention", "sliding_attention"), kept["config"]["rope_parameters"]
        )
        kept = kept | {"config": kept["config"] | {"rope_parameters": kinds}}
    source = pretrained.describe(f"hf:{write(tmp_path / 'm', kept['config'], kept['shapes'])}")
    loaded = source.load().model
    for i, chain in enumerate(CHAINS):
        try:
            model = apply(loaded, chain)
        except DoesNotApply:
            continue
        try:
            fit = fitted(model, source.family, source.made_with)
        except ValueError as error:
            assert "head bias" in str(error)  # which a folded final norm leaves
            continue
        folder = exported(tmp_path / str(i), fit)
        options = {"attn_implementation": "eager", "dtype": torch.float64}
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        with torch.no_grad():
            logits = theirs(torch.tensor(TOKENS)).logits
        found = torch.log_softmax(logits, -1).numpy()
        ours = log_softmax(forward(fit.model, TOKENS))
        print(f"{case}, {chain}: {np.abs(found - ours).max():.1e} as {fit.family}; {fit.notes}")
        np.testing.assert_allclose(found, ours, rtol=0, atol=1e-4)
