"""What can be read off a kernel's outputs directly, before any arithmetic is compared."""

from dataclasses import dataclass
from itertools import product

import jax.numpy as jnp
import numpy as np

from normlab.numerics.output import CODES, Output, largest, nearest
from normlab.probe.kernel import DTYPES, Kernel
from normlab.probe.rows import Design
from normlab.probe.stages import NARROW

BATCHES, ROWS = (1, 2, 7, 33), 32
"""Sizes of a batch that are tried; that of all further calls, where a result depends on it."""
FEWEST = 4
"""Elements of a block: of two, almost any numbers are a scale and codes."""


@dataclass(frozen=True)
class Observed:
    """What a kernel does whatever its arithmetic.

    Args:
        center: it takes the mean off (LayerNorm).
        one_plus: it multiplies by 1 + w.
        inputs: formats to which a row may be rounded with no output changed; None: as it comes.
        outputs: formats that hold every output; None: float32. Of 8 bits with a scale, one.
        flush: what becomes of subnormal numbers of the format, at the input and at the output:
            kept, flushed, or unknown.
        batch: what of a row's result depends on the other rows, in words; empty: nothing seen.
    """

    center: bool
    one_plus: bool
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    flush: tuple[str, str]
    batch: str

    @property
    def together(self) -> int | None:
        """Rows in each further call; None: any number. One where all of a call share a scale."""
        if (self.outputs[0] or "").endswith(".tensor"):
            return 1
        return ROWS if self.batch else None


def observe(kernel: Kernel, design: Design) -> Observed:
    """Some calls of the kernel, and what they show."""
    d, rng = kernel.d, design.rng
    ones, eps = np.ones(d, np.float32), 1e-5
    x = kernel.cast(design.dense(ROWS, -1, 2))
    moved = kernel(kernel.cast(np.abs(x) + 4), ones, eps)
    bare = kernel(x, np.zeros(d, np.float32), eps)
    weight = kernel.cast(rng.normal(1, 0.5, d))
    y = kernel(x, weight, eps)
    held = outputs(y)
    return Observed(
        center=bool((np.abs(moved.mean(-1)) < 0.1 * np.abs(moved).mean(-1)).all()),
        one_plus=bool((np.nan_to_num(bare) != 0).any()),
        inputs=_inputs(kernel, x, weight, y),
        outputs=held,
        flush=_flush(kernel, bool((np.nan_to_num(bare) != 0).any()), held),
        batch=_batch(kernel, x, weight, y),
    )


def same(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two float32 arrays have the same bits; a NaN is any NaN, and 0 is −0."""
    return np.asarray((a == b) | (np.isnan(a) & np.isnan(b)))


def rounded(x: np.ndarray, to: str) -> np.ndarray:
    """To a format and back, by NumPy."""
    with np.errstate(all="ignore"):
        return np.float32(x).astype(DTYPES[to]).astype(np.float32)


def _inputs(
    kernel: Kernel, x: np.ndarray, weight: np.ndarray, y: np.ndarray
) -> tuple[str | None, ...]:
    """The kernel's own format, and narrower ones that change nothing."""
    own = None if kernel.dtype == "fp32" else kernel.dtype
    narrower = [form for form in NARROW if kernel.dtype == "fp32"] or ["bf16"]
    held = [f for f in narrower if same(kernel(rounded(x, f), weight, 1e-5), y).all() and f != own]
    return tuple(held) if held else (own,)


def outputs(y: np.ndarray) -> tuple[str | None, ...]:
    """The formats that hold rows [n, d] of one call; of 8 bits with a scale only that one."""
    d = y.shape[-1]
    blocks = [size for size in range(d // 2, FEWEST - 1, -1) if d % size == 0]
    parts = {"row": d, "tensor": y.size} | {f"block{size}": size for size in blocks}
    for code, (name, size) in product(CODES, parts.items()):
        if _is_scaled(y.reshape(-1, size), code):
            return (f"{code}.{name}",)
    return (*(form for form in NARROW if same(rounded(y, form), y).all()), None)


def _is_scaled(parts: np.ndarray, code: str) -> bool:
    """Whether the rows are codes, each row's times its scale: its largest has the largest code."""
    top = np.abs(parts).max(-1, keepdims=True)
    codes = jnp.asarray(parts / np.where(top > 0, top, 1) * np.float32(largest(code)))
    return bool(np.isclose(codes, nearest(codes, code), rtol=1e-5, atol=0).all())


def _flush(kernel: Kernel, one_plus: bool, held: tuple[str | None, ...]) -> tuple[str, str]:
    """A subnormal number that a row's small RMS makes large; a normal one that leaves subnormal."""
    least = 2.0**-14 if kernel.dtype == "fp16" else 2.0**-126
    x = np.zeros((1, kernel.d), np.float32)
    x[0, 0] = least / 4
    weight = np.full(kernel.d, 64.0 - one_plus, np.float32)
    came = kernel(x, weight, 1e-5)[0, 0]
    x[0, 0], x[0, 1::2], x[0, 2::2] = least * 2, 8.0, -8.0
    left = kernel(x, np.full(kernel.d, 1.0 - one_plus, np.float32), 1e-5)[0]
    told = {True: "kept", False: "flushed"}
    whole = np.isfinite(left).all() and left[1] != 0  # no sum overflowed
    whole &= held[0] is None or Output(held[0]).format is not None  # no code of 8 bits
    return told[bool(came != 0)], told[bool(left[0] != 0)] if whole else "unknown"


def _batch(kernel: Kernel, x: np.ndarray, weight: np.ndarray, y: np.ndarray) -> str:
    """Rows alone, in batches of other sizes, in another order, and beside a much larger one."""
    tried = {}
    for size in BATCHES:
        rows = np.resize(np.arange(len(x)), size)
        tried[f"in a batch of {size}"] = (kernel(x[rows], weight, 1e-5), y[rows])
    back = slice(None, None, -1)
    tried["in another order"] = (kernel(x[back], weight, 1e-5), y[back])
    beside = x.copy()
    beside[-1] *= 64
    tried["beside a larger row"] = (kernel(beside, weight, 1e-5)[:-1], y[:-1])
    seen = [name for name, (got, want) in tried.items() if not same(got, want).all()]
    return ", ".join(seen)
