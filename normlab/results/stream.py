"""What a column of norms' precision doesn't show: a stream that its format can't hold; the cure."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from normlab.numerics import FloatFormat
from normlab.results.fields import Ranges

STREAM = ("norm_in", "norm_final", "post_norm")
"""Kinds of site whose input is the residual stream."""


@dataclass(frozen=True)
class Inputs:
    """What the norms of a model were given, beside the format that their column holds it in.

    Args:
        format: of the column's activations, or else of its norms.
        site: the first with an element beyond the format's largest value, of the stream if one of
            its is; None where all fits, and in records from before this was counted.
        largest: the largest |x| of the stream, or at that site; infinite where it was stored so.
        rescalable: whether the stream leaves the format, and no norm makes it (`post_norm`).
        transform: of the model, "none" for one as it was loaded.
    """

    format: FloatFormat
    site: str | None
    largest: float
    rescalable: bool
    transform: str

    @classmethod
    def of(cls, ranges: Ranges, format: FloatFormat, transform: str) -> "Inputs":
        """Of what a record says of its sites."""
        sites = {name: ranges.sites[name] for name in in_order(ranges.sites)}
        narrow = not format.is_float32
        out = [name for name, seen in sites.items() if narrow and seen.get("outside")]
        stream = [name for name in sites if _kind(name) in STREAM]
        first = next(iter([name for name in stream if name in out] + out), None)
        read = stream if first is None or first in stream else [first]
        largest = max((sites[name].get("max_abs", 0.0) for name in read), default=0.0)
        made = any(_kind(name) == "post_norm" for name in stream)
        return cls(format, first, largest, first in stream and not made, transform)

    def said(self, model: str) -> str:
        """Where it leaves the format, and what cures that."""
        where = f"leaves {self.format} at {self.site} (up to {self.largest:,.6g})"
        if not self.rescalable or not math.isfinite(self.largest):
            what = "the stream" if self.rescalable else "a norm's input"
            return f"{what} of {model} {where}: python -m evaluate ranges tells more"
        factor = 2.0 ** -math.ceil(math.log2(self.largest / self.format.max))
        others = "" if self.transform == "none" else f"+{self.transform}"
        return f"the stream of {model} {where}: transform=rescale:{factor!r}{others}"


def stream_note(rows: Mapping[str, Sequence[Inputs]]) -> str:
    """One line on the models whose stream a column can't hold; "" where there is none.

    Args:
        rows: by model its columns.
    """
    found: dict[str, dict[str, Inputs]] = {}
    for name, columns in rows.items():
        known = [c.largest for c in columns if math.isfinite(c.largest)]  # fp32's, among others
        for inputs in columns:
            if inputs.site is not None:
                largest = (
                    inputs.largest
                    if math.isfinite(inputs.largest)
                    else max(known, default=math.inf)
                )
                seen = dataclasses.replace(inputs, largest=largest)
                found.setdefault(str(inputs.format), {}).setdefault(name, seen)
    parts = []
    for models in found.values():
        name = max(models, key=lambda model: models[model].largest)
        others = f" (one of {len(models)} rows)" if len(models) > 1 else ""
        parts.append(f"{models[name].said(name)}{others}")
    return _sentence("; ".join(parts))


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _kind(site: str) -> str:
    return site.rpartition(".")[2]


def in_order(sites: Iterable[str]) -> list[str]:
    """Sites as the forward pass meets them: the embedding's, block by block, the final one."""

    def place(name: str) -> tuple[int, int, str]:
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return 1, int(block[1]), name
        return (0 if "embed" in name else 2), 0, name

    return sorted(sites, key=place)
