"""Records of runs that differ in their seed, with perplexities that a test chose."""

import math

from tests.support.records import grouped

BASE, OTHER = [100.0, 103.0, 101.0, 99.0], [104.0, 109.0, 103.0, 104.0]
"""Perplexities of two methods, a seed each."""


def record(
    norm,
    seed,
    perplexity,
    precision="fp32",
    lr=1e-3,
    status="ok",
    valid=None,
    placement="pre",
    **more,
):
    """One run's."""
    config = {
        "seed": seed,
        "norm": {"type": norm},
        "placement": {"type": placement},
        "run": str(seed),
    }
    config |= {"optimizer": {"lr": lr}}
    loss = math.log(perplexity) if valid is None and perplexity else valid
    return grouped(
        key="", model=f"{norm}-{placement}-{lr}-{seed}", norm=norm, placement=placement,
        precision=precision, status=status, perplexity=perplexity, seed=seed,
        facts={"config": config, "training": {"best_valid_loss": loss}}, **more,
    )  # fmt: skip


def runs(norm, values, seeds, **more):
    """A method's."""
    pairs = zip(seeds, values, strict=True)
    return [record(norm, seed, value, split="test", **more) for seed, value in pairs]
