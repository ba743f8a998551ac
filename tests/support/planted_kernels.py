"""Kernels whose datapath is drawn at random and hidden; loops in NumPy compute them."""

from typing import NamedTuple

import numpy as np

from normlab.numerics import Datapath
from normlab.numerics.eps import EpsForm
from normlab.probe import stages
from tests.support import datapath_reference as reference


class Planted(NamedTuple):
    """A datapath, and what stands around it."""

    path: Datapath
    dtype: str
    center: bool = False

    def __call__(self, x, weight, eps):
        """The rows [n, d] that leave it."""
        return reference.unit(
            np.float32(x), self.path, np.float32(weight), eps=eps, center=self.center
        )


def planted(seed, d, center=False):
    """One of the probe's space, every stage drawn apart; no root that is XLA's own."""
    rng = np.random.default_rng(seed)

    def draw(options):
        return options[rng.integers(len(options))]

    dtype = draw(["fp32", "fp16", "bf16"])
    form = draw(["fp32", "fp16", "bf16"])
    squares = [f for f in stages.FORMATS if f != form]
    roots = [root for root in stages.roots() if root.kind != "rsqrt"]
    kinds = {root.kind: None for root in roots}
    kind = draw(list(kinds))
    output = draw(stages.NARROW) if dtype == "fp32" and rng.random() < 0.2 else dtype
    output = None if output == "fp32" else output
    front = stages.Front(
        draw(stages.means(d)),
        draw(stages.FORMATS),
        EpsForm.UNDER,
        draw([root for root in roots if root.kind == kind]),
    )
    made = stages.datapath(
        None if dtype == "fp32" else dtype,
        draw(list(stages.sums(form, [draw(squares)], d))),
        front,
        draw(stages.tails([output])),
    )
    return Planted(made, dtype, center)
