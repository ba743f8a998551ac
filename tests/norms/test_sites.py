"""Sites by name or pattern, and the refusal of a pattern that matches none."""

import pytest

from normlab.norms import norms
from normlab.norms.sites import NormAt, matches, matching, norm_of

SITES = [
    "norm_final",
    *(f"blocks.{i}.{b}.norm_in" for i in range(12) for b in ("attention", "mlp")),
]


def test_a_pattern_matches_whole_names():
    found = matching(["norm_final", "blocks.1.*"], SITES)
    assert list(found) == SITES
    assert [site for site, kept in found.items() if kept] == [
        "norm_final", "blocks.1.attention.norm_in", "blocks.1.mlp.norm_in",
    ]  # fmt: skip
    assert not any(matching([], SITES).values())


def test_one_that_matches_nothing_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"pattern of sites, 'norm_fina'. Did you mean 'norm_fin"):
        matching(["blocks.*", "norm_fina"], SITES)
    many = [f"blocks.{i}.mlp.norm_in" for i in range(100)]
    with pytest.raises(ValueError, match=r"\(100 in all\)"):
        matching(["blocks.100.*"], many)


@pytest.mark.parametrize(
    ("pattern", "blocks"),
    [("blocks.0-2.*", [0, 1, 2]), ("blocks.9-11.mlp.norm_in", [9, 10, 11]), ("blocks.3-1.*", [])],
)
def test_a_range_is_of_numbers(pattern, blocks):
    found = {int(site.split(".")[1]) for site in SITES[1:] if matches(pattern, site)}
    assert sorted(found) == blocks


def test_the_last_pattern_that_matches_gives_the_norm():
    plain, dyt, layer = (norms[name].Config() for name in ("rmsnorm", "dyt", "layernorm"))
    at = (NormAt("blocks.*", dyt), NormAt("*.mlp.*", layer))
    sites = ("norm_final", "blocks.0.attention.norm_in", "blocks.0.mlp.norm_in")
    assert [norm_of(site, plain, at) for site in sites] == [plain, dyt, layer]
