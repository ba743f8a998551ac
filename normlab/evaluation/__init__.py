"""Perplexities of models in chosen precisions: protocols, scores, comparisons."""

from typing import Any

__all__ = ["evaluate", "table"]


def __getattr__(name: str) -> Any:
    """`evaluate` and `table`, which are slow to import, once they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from normlab.evaluation import job

    return getattr(job, name)
