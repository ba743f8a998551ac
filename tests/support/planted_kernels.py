"""Kernels whose datapath is drawn at random and hidden; loops in NumPy compute them."""

from typing import NamedTuple

import numpy as np

from normlab.numerics import Datapath
from normlab.numerics.eps import EpsForm
from normlab.numerics.output import CODES
from normlab.probe import stages
from tests.support import datapath_reference as reference


class Planted(NamedTuple):
    """A datapath, how a row meets γ and 1/rms (`stages.JOINED`), and what stands around it."""

    path: Datapath
    dtype: str
    center: bool = False
    way: str = ""

    def __call__(self, x, weight, eps):
        """The rows [n, d] that leave it."""
        given = np.float32(x), self.path, np.float32(weight)
        bias = np.zeros(x.shape[-1], np.float32) if self.path.fused else None
        joined = self.way == stages.JOINED
        return reference.unit(*given, bias, eps, center=self.center, joined=joined)

    def among(self, found):
        """Whether it is one of those that a finding leaves."""
        return (self.path, self.way) in [(a.path, a.tail.way) for a in found.left]


def eight_bits(d):
    """Every output with a scale, blocks of two sizes among them."""
    return [f"{code}.{part}" for code in CODES for part in ("tensor", "row", f"block{d // 3}")]


def planted(seed, d):
    """One of the probe's space, every stage drawn apart; no root that is XLA's own."""
    rng = np.random.default_rng(seed)

    def draw(options):
        return options[rng.integers(len(options))]

    dtype = draw(["fp32", "fp16", "bf16"])
    form = draw(["fp32", "fp16", "bf16", "fp64"])
    square = draw([f for f in stages.FORMATS if f != form])
    wide = form == stages.WIDE
    sum = draw(stages.wide_sums(square, d) if wide else list(stages.sums(form, [square], d)))
    mean = draw([*stages.means(d), *(stages.wide_means() if wide else ())])
    roots = [root for root in stages.roots() if root.kind != "rsqrt"]
    kind = draw(list({root.kind: None for root in roots}))
    output = draw(stages.NARROW) if dtype == "fp32" and rng.random() < 0.2 else dtype
    output = draw(eight_bits(d)) if rng.random() < 0.15 else output
    output = None if output == "fp32" else output
    tails = stages.tails([output])
    way = stages.JOINED if rng.random() < 0.15 else ""
    front = stages.Front(
        mean,
        draw(stages.FORMATS),
        EpsForm.UNDER,
        draw([root for root in roots if root.kind == kind]),
    )
    tail = draw([tail for tail in tails if tail.way == way])
    made = stages.datapath(None if dtype == "fp32" else dtype, sum, front, tail)
    return Planted(made, dtype, way=way)
