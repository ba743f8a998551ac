"""Sites by name or pattern: "norm_final", "blocks.2.*", "blocks.0-5.*", "*.norm_out"."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flax import nnx

from normlab.config import field
from normlab.norms.base import NormConfig, all_norms
from normlab.registry import unknown


@dataclass(frozen=True)
class NormAt:
    """The norm of some sites, in place of the model's own."""

    sites: str = field("*", "a site, or a pattern of sites: blocks.0-5.*, *.norm_out, norm_final")
    norm: NormConfig = field(NormConfig, "its type, or type and fields")


def norm_of(site: str, norm: NormConfig, norm_at: Sequence[NormAt]) -> NormConfig:
    """The norm of a site: that of the last pattern that matches it, or else the model's."""
    found = [one.norm for one in norm_at if matches(one.sites, site)]
    return found[-1] if found else norm


def with_statistic(model: nnx.Module) -> list[str]:
    """The sites of a model whose norm accumulates something, in the model's order."""
    return [norm.site.name for norm in all_norms(model) if norm.has_statistic]


def matches(pattern: str, site: str) -> bool:
    """Whether a pattern matches a site: `*` is any text, dots too, `0-5` a number from 0 to 5."""

    def numbers(found: re.Match[str]) -> str:
        first, last = map(int, found.groups())
        return "(?:" + "|".join(map(str, range(first, last + 1))) + ")"

    return bool(re.match(re.sub(r"(\d+)\\-(\d+)", numbers, fnmatch.translate(pattern)), site))


def matching(patterns: Iterable[str], sites: Sequence[str]) -> dict[str, bool]:
    """By site whether one of the patterns matches it.

    Raises:
        UnknownNameError: a pattern matches none; with the site that is nearest to it.
    """
    asked = list(patterns)
    for pattern in asked:
        if not any(matches(pattern, site) for site in sites):
            raise unknown("norm site, or pattern of sites,", pattern, sites)
    return {site: any(matches(pattern, site) for pattern in asked) for site in sites}
