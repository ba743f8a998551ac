"""The placement table: which sites each row has, what it says of itself, what a config refuses."""

import jax
import numpy as np
import pytest
from flax import nnx

from normlab.model import Context, PlacementConfig, placements
from normlab.model.placement import SITES, SUBLAYERS, At, Placement, ResidualConfig
from normlab.norms import Norm, all_norms
from normlab.registry import UnknownNameError
from tests.conftest import tiny_model

LAYERS = 4
ATTENTION_AND_MLP = {  # sites of the two sublayers of block 2 of 4
    "pre": ({"norm_in"}, {"norm_in"}),
    "post": ({"post_norm"}, {"post_norm"}),
    "peri": ({"norm_in", "norm_out"}, {"norm_in", "norm_out"}),
    "parallel": ({"norm_in"}, {"norm_in"}),
    "reordered": ({"norm_out"}, {"norm_out"}),
    "sandwich": ({"norm_in", "norm_out"}, {"norm_in", "norm_out"}),
    "deepnorm": ({"post_norm"}, {"post_norm"}),
    "sub-ln": ({"norm_in", "sub_norm"}, {"norm_in", "sub_norm"}),
    "normformer": ({"norm_in", "norm_out"}, {"norm_in", "sub_norm"}),
    "lns": ({"norm_in"}, {"norm_in"}),
    "mix-ln": ({"norm_in"}, {"norm_in"}),
    "hybridnorm": ({"norm_qk", "norm_v", "post_norm"}, set()),
    "hybridnorm-star": ({"norm_qk", "norm_v", "post_norm"}, set()),
    "keel": ({"norm_in", "post_norm"}, {"norm_in", "post_norm"}),
}


def inputs(model, tokens):
    """Every norm's input by site: shapes only."""

    def run(tokens):
        context = Context(capture=True)
        model(tokens, context)
        return context.inputs

    return jax.eval_shape(run, tokens)


@pytest.mark.parametrize("name", placements)
def test_the_table_is_the_papers(name):
    config, card = PlacementConfig(name), placements[name].card
    assert "arXiv" in card.source
    assert all((card.title, card.formula, card.property))
    found = tuple(set(config.residual(s, 1, LAYERS).sites) for s in SUBLAYERS)
    assert found == ATTENTION_AND_MLP[name]
    normed = "post_norm" in found[1]
    assert config.around(LAYERS) == (set() if normed else {"norm_final"})


@pytest.mark.parametrize("name", placements)
def test_every_site_of_a_row_has_a_norm_and_no_other(name):
    """That each is visited: test_placement_rows.py."""
    config = PlacementConfig(name)
    expected = set(config.around(2))
    for layer in range(2):
        for sublayer in SUBLAYERS:
            for kind in config.residual(sublayer, layer, 2).sites:
                parts = {"norm_qk": ("query.", "key."), "norm_v": ("value.",)}.get(kind, ("",))
                expected |= {f"blocks.{layer}.{sublayer}.{part}{kind}" for part in parts}
    model = tiny_model(placement=name)
    assert sorted(norm.site.name for norm in all_norms(model)) == sorted(expected)
    assert {norm.config for norm in all_norms(model)} == {model.norm}
    of_graph = [node for _, node in nnx.iter_graph(model) if isinstance(node, Norm)]
    assert list(map(id, all_norms(model))) == list(map(id, of_graph))
    assert {site.rsplit(".", 1)[-1] for site in expected} == config.sites(2) <= set(SITES)


def test_embed_and_qk_norms_can_be_added_to_any_row(tokens):
    model = tiny_model()
    plain = len(inputs(model, tokens))
    fields = {"norm_embed": True, "norm_qk": True}
    seen = inputs(tiny_model(placement_fields=fields), tokens)
    assert len(seen) == plain + 1 + 4
    assert seen["norm_embed"].shape == (2, 16, 32)
    assert seen["blocks.0.attention.query.norm_qk"].shape == (2, 16, 2, 16)


def test_inner_norms_have_the_width_of_what_they_normalize(tokens):
    seen = inputs(tiny_model(placement="sub-ln", heads=4, head_dim=6, hidden=40), tokens)
    assert seen["blocks.0.attention.sub_norm"].shape == (2, 16, 24)
    assert seen["blocks.0.mlp.sub_norm"].shape == (2, 16, 40)
    seen = inputs(tiny_model(placement="hybridnorm", heads=4, kv_heads=2), tokens)
    assert seen["blocks.0.attention.value.norm_v"].shape == (2, 16, 2, 8)


def test_a_row_is_one_registered_function(tokens):
    """A norm only before the MLPs of odd blocks: nothing else has to change."""

    def wire(at):
        return ResidualConfig(
            frozenset({"norm_in"} if at.sublayer == "mlp" and at.layer % 2 else ())
        )

    placements.register("odd")(Placement(wire, placements["pre"].card))
    try:
        assert set(inputs(tiny_model(placement="odd"), tokens)) == {
            "blocks.0.mlp.norm_in",
            "norm_final",
        }
    finally:
        placements.remove("odd")


def test_an_unknown_placement_names_the_nearest():
    with pytest.raises(UnknownNameError, match="placement 'perry'. Did you mean 'peri'"):
        PlacementConfig(type="perry")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm_qk_full": True}, "means nothing without placement.norm_qk=true"),
        ({"norm_qk_rotated": True}, "means nothing without placement.norm_qk=true"),
        (
            {"type": "hybridnorm", "norm_qk": True, "norm_qk_full": True},
            "contradicts placement=hybridnorm, which normalizes queries, keys and values head by",
        ),
        ({"post_share": 0.5}, "post_share = 0.5 means nothing to placement=pre; .*mix-ln"),
        ({"type": "mix-ln", "post_share": 1.5}, "post_share = 1.5: expected a share .* 0 … 1"),
    ],
)
def test_what_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PlacementConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sites": frozenset({"norm_inn"})}, "Did you mean 'norm_in'"),
        ({"sites": frozenset({"norm_final"})}, "unknown site of a sublayer 'norm_final'"),
        ({"alpha": 0.0}, "alpha = 0.0: expected a factor > 0"),
        ({"scale_in": 0.5}, "expected norm_in among the sites, got none"),
    ],
)
def test_a_residual_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ResidualConfig(**fields)


@pytest.mark.parametrize("placement", ["deepnorm", "keel"])
def test_a_factor_on_the_stream_needs_a_norm(placement):
    with pytest.raises(ValueError, match=f"placement={placement} with norm=none would grow the st"):
        tiny_model("none", placement)


@pytest.mark.parametrize(
    ("share", "layers", "posts"), [(0.25, 12, 3), (0.25, 24, 6), (0.29, 100, 29)]
)
def test_mix_ln_rounds_down(share, layers, posts):
    config = PlacementConfig("mix-ln", post_share=share)
    found = [config.residual("mlp", i, layers).sites for i in range(layers)]
    assert found == [{"post_norm"}] * posts + [{"norm_in"}] * (layers - posts)


@pytest.mark.parametrize(("layers", "posts"), [(1, 1), (2, 1), (3, 1), (4, 1), (8, 2)])
def test_mix_ln_left_alone_is_never_silently_pre(layers, posts):
    found = [PlacementConfig("mix-ln").residual("mlp", i, layers).sites for i in range(layers)]
    assert found == [{"post_norm"}] * posts + [{"norm_in"}] * (layers - posts)


def test_an_estimate_of_what_attention_adds_needs_pre():
    tiny_model("bhyt-estimated", "pre")
    with pytest.raises(ValueError, match="expected placement=pre, or norm=bhyt"):
        tiny_model("bhyt-estimated", "peri")


def test_the_constants_of_twelve_layers():
    wire = lambda name, layer, layers: placements[name].wire(At("mlp", layer, layers, 0.25))  # noqa: E731
    assert wire("deepnorm", 1, 12).alpha == pytest.approx(2.2134, abs=5e-5)
    assert wire("deepnorm", 1, 12).gain == pytest.approx(0.3195, abs=5e-5)
    assert wire("sub-ln", 1, 12).gain == pytest.approx(1.783, abs=5e-4)
    assert wire("keel", 1, 12).alpha == 24
    np.testing.assert_allclose([wire("lns", i, 12).scale_in for i in (1, 4, 9)], [1, 1 / 2, 1 / 3])
