"""Norms by an accumulator, at one shape: a precision is one program, whatever it is asked."""

from dataclasses import fields
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np

from normlab.numerics import RangeCounts, RangeRecorder

EPS = 1e-5
D, ROWS = 64, 400
COUNTS = ("rows", "overflowed", "subnormal", "zero")
EVERYTHING = tuple(f.name for f in fields(RangeCounts) if f.name != "stages")


@partial(jax.jit, static_argnames=("precision", "center", "form", "first", "names"))
def normed(x, precision, scale, eps, center=False, form="under", first=None, names=COUNTS):
    """(the normalized rows, those fields of the range counts); the rest is not compiled."""
    acc = RangeRecorder(precision, scale)
    y, counts = acc.normalize(x, eps, center=center, form=form, first=first), acc.counts()
    return y, {name: getattr(counts, name) for name in names}


def normalize(x, precision, scale=1.0, eps=EPS, **more):
    """The same of up to 400 rows of 64: `y`, and fields by name.

    Rows of zeros make up the shape. They are no more than rows: nothing counts them or sees them.
    """
    x = np.asarray(x, np.float32)
    padded = np.zeros((ROWS, D), np.float32)
    padded[: len(x)] = x
    if np.ndim(scale):
        scale = np.concatenate([scale, np.ones((ROWS - len(x), 1))])
    y, seen = jax.device_get(normed(padded, precision, np.float32(scale), np.float32(eps), **more))
    if "rows" in seen:
        seen["rows"] = seen["rows"] - (ROWS - len(x))
    return SimpleNamespace(y=y[: len(x)], **seen)
