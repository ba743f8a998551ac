"""Runs that start from a pretrained model: what is taken over, what is new, refusals."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context, Transformer
from normlab.norms import norms
from normlab.norms.sites import NormAt
from normlab.training.start import adopt, fit_alphas, resolved
from tests.conftest import VOCAB, tiny_model
from tests.support.passes import TOKENS, passed
from tests.support.runs import tiny_config
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder


def fresh(start, rows=VOCAB, **more):
    return Transformer(start.config, start.norm, start.placement, rows, 7, **more)


def test_a_model_of_the_same_norms_takes_over_every_weight():
    start = tiny_model()
    model = fresh(start)
    assert adopt(model, start) == []
    assert passed(model).logits.tobytes() == passed(start).logits.tobytes()


def test_a_new_norm_keeps_its_weight_and_begins_at_the_size_of_its_rows():
    start = tiny_model()
    model = fresh(start, norm_at=(NormAt("blocks.0.*", norms["dyt"].Config()),))
    sites = ["blocks.0.attention.norm_in", "blocks.0.mlp.norm_in"]
    assert adopt(model, start) == [f"{site}.alpha" for site in sites]
    assert fit_alphas(model, start, TOKENS) == sites
    weight = model.blocks[0].mlp.norm_in.weight[...]
    np.testing.assert_array_equal(weight, start.blocks[0].mlp.norm_in.weight[...])
    context = Context(capture=True)
    start(jnp.asarray(TOKENS), context)
    for site in sites:
        part = model.blocks[0].mlp if ".mlp." in site else model.blocks[0].attention
        rms = np.sqrt(np.mean(np.float64(context.inputs[site]) ** 2))
        assert float(part.norm_in.alpha[...]) == pytest.approx(1 / rms, rel=1e-5)


@pytest.mark.system
def test_rows_that_no_token_has_are_left_out():
    start = tiny_model(tied=False)
    model = fresh(start, rows=VOCAB - 7)
    assert adopt(model, start) == []
    kept = passed(start, TOKENS % (VOCAB - 7)).logits[..., : VOCAB - 7]
    found = nnx.jit(lambda m: m(TOKENS % (VOCAB - 7)))(model)
    np.testing.assert_allclose(found, kept, rtol=1e-5, atol=1e-5)


def test_the_checkpoint_decides_shape_and_placement_and_a_named_norm_stays(tmp_path):
    spec = write_folder(tmp_path / "llama", CONFIGS["llama"], tensors("llama"))
    asked = dataclasses.replace(tiny_config(tmp_path, norm={"type": "dyt"}, window=16), init=spec)
    own, named = resolved(asked, ["steps"]), resolved(asked, ["norm", "norm.alpha"])
    assert own.norm.type == "rmsnorm"
    assert own.model.layers == CONFIGS["llama"]["num_hidden_layers"]
    assert (named.norm, named.model) == (asked.norm, own.model)
    for name in ("model", "model.width", "placement"):
        with pytest.raises(ValueError, match=f"^{name}: init=hf:.* leave it out"):
            resolved(asked, [name])
    plain = tiny_config(tmp_path)
    assert resolved(plain, ["model.width"]) is plain
