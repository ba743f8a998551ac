"""LayerNorm into RMSNorm: exact where only norms read the stream, refused elsewhere."""

import jax
import numpy as np
import pytest

from normlab.model import placements
from normlab.norms import norms
from normlab.transforms import DoesNotApply, apply
from tests.conftest import tiny_model
from tests.support.transform_models import bits, close, double, same, seen

EXACT = {"pre", "parallel", "lns", "sub-ln"}


FULL = {"tied": False, "bias": True, "positions": "learned"}


@pytest.mark.parametrize(
    ("placement", "fields"), [("pre", {}), *((placement, FULL) for placement in sorted(EXACT))]
)
def test_recentring_is_exact(placement, fields):
    with jax.enable_x64(True):
        model = double("layernorm", placement, **fields)
        before = bits(model)
        made = apply(model, "recentre")
        (said, was), (says, found) = seen(model), seen(made)
        assert close(said, says)
        assert bits(model) == before
        assert type(made.norm_final) is norms["rmsnorm"]
        assert made.norm.type == "rmsnorm"
        for site, x in found.items():
            assert np.abs(x.mean(-1)).max() < 1e-14 * np.abs(x).max(), site
        means = [np.abs(x.mean(-1)).max() for x in was.values()]
        assert min(means) > 1e-2  # there was something to take away


def test_norms_inside_a_branch_stay_layernorms():
    with jax.enable_x64(True):
        model = double("layernorm", placement_fields={"norm_qk": True})
        made = apply(model, "recentre")
        assert same(model, made)
    assert type(made.blocks[0].attention.branch.norm_q) is norms["layernorm"]
    assert type(made.blocks[0].attention.norm_in) is norms["rmsnorm"]


def test_a_tied_head_is_untied_and_stays_what_it_was():
    model = tiny_model("layernorm")
    made = apply(model, "recentre")
    assert (made.head is not None, made.config.tied, model.head) == (True, False, None)
    assert np.array_equal(made.head.kernel[...], model.embed.embedding[...].T)
    assert abs(np.asarray(made.embed.embedding[...]).mean(-1)).max() < 1e-7


@pytest.mark.parametrize("placement", [p for p in placements if p not in EXACT])
def test_placements_whose_norms_write_to_the_stream_are_refused(placement):
    with pytest.raises(DoesNotApply, match=f"placement '{placement}'.*(norm_out|post_norm)"):
        apply(tiny_model("layernorm", placement), "recentre")


def test_a_norm_on_the_embedding_is_refused():
    with pytest.raises(DoesNotApply, match="has a norm at norm_embed"):
        apply(tiny_model("layernorm", placement_fields={"norm_embed": True}), "recentre")


def test_embedding_rows_of_one_length_are_refused():
    """The tied head divides by the rows that it had, the embedding by the rows that it has."""
    with pytest.raises(DoesNotApply, match="model.embed_length"):
        apply(tiny_model("layernorm", embed_length=3.0), "recentre")


FIRST = ("rmsnorm", "dyt", "groupnorm")
OTHERS = [n for n in norms if n != "layernorm"]


@pytest.mark.parametrize(
    "norm", [n if n in FIRST else pytest.param(n, marks=pytest.mark.system) for n in OTHERS]
)
def test_other_norms_are_refused(norm):
    with pytest.raises(DoesNotApply, match=f"expected a LayerNorm.*got norm '{norm}'"):
        apply(tiny_model(norm, layers=1), "recentre")
