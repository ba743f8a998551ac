"""Sites by name or pattern: "norm_final", "blocks.2.*", "*.norm_out"."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from flax import nnx

from normlab.norms.base import all_norms
from normlab.registry import unknown


def with_statistic(model: nnx.Module) -> list[str]:
    """The sites of a model whose norm accumulates something, in the model's order."""
    return [norm.site.name for norm in all_norms(model) if norm.has_statistic]


def matching(patterns: Iterable[str], sites: Sequence[str]) -> dict[str, bool]:
    """By site whether one of the patterns matches it; `*` stands for any text, dots too.

    Raises:
        UnknownNameError: a pattern matches none; with the site that is nearest to it.
    """
    asked = list(patterns)
    for pattern in asked:
        if not any(fnmatchcase(site, pattern) for site in sites):
            raise unknown("norm site, or pattern of sites,", pattern, sites)
    return {site: any(fnmatchcase(site, pattern) for pattern in asked) for site in sites}
