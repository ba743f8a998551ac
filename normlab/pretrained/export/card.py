"""The README of an exported model: what was done, what that cost, where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normlab.pretrained.export.scales_file import ScalesFile

LIBRARIES = {"hf": "transformers", "gguf": "gguf"}


@dataclass(frozen=True)
class Measured:
    """One model's perplexity, and how far its log-probabilities are from the others'.

    Args:
        name: "as loaded", "after the transform", "as exported".
        perplexity: in float32.
        moved: largest |Δ log p| of a scored token, to the model as loaded and to the one before.
    """

    name: str
    perplexity: float
    moved: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Card:
    """Everything that the README says.

    Args:
        name: the model's.
        chain: the transforms, numbers for all that was found by measuring.
        family: `model_type` of its config.
        format: of `LIBRARIES`.
        notes: what was chosen where the family can't say all of it.
        dtype: of the weights.
        scaled: the scales of its norms, where there are some beside it.
        text: what was read: "WikiText-2 …, 8 windows of 1024 tokens".
        measured: the models in turn.
        sources: what it was made from, and which that was.
        files: the weights' files here, and their SHA-256.
        command: that made it.
        version: of normlab.
    """

    name: str
    chain: str
    family: str
    format: str
    notes: Sequence[str]
    dtype: str
    scaled: ScalesFile | None
    text: str
    measured: Sequence[Measured]
    sources: Mapping[str, str]
    files: Mapping[str, str]
    command: str
    version: str

    def table(self) -> str:
        """Perplexities and differences, as Markdown."""
        lines = ["| model | perplexity | Δ log p to loaded | Δ log p to the line above |"]
        lines.append("| --- | --- | --- | --- |")
        for m in self.measured:
            moved = [f"{d:.1e}" for d in m.moved]
            lines.append(f"| {m.name} | {m.perplexity:.6g} | {' | '.join(moved)} |")
        return "\n".join(lines)

    def _scales(self) -> str:
        if self.scaled is None:
            return ""
        modules = self.scaled.modules.values()
        return f"""## Scaled norms

`scales.json` has the static scale of each of {len(modules)} norms by the rule `{self.scaled.rule}`.
In a model of `transformers` they compute as `{self.scaled.datapath}`, but for
{sum(m.keep_fp32 for m in modules)} that are kept in float32:

```python
from apply_scales import apply

apply(model, "scales.json")
```

"""

    def __str__(self) -> str:
        done = "nothing" if self.chain == "none" else f"`{self.chain}`"
        said = self.notes or ["Nothing had to be given up for the family's config."]
        made_from = [f"- from `{name}`: {which}" for name, which in self.sources.items()]
        here = [f"- here `{name}`: SHA-256 {digest}" for name, digest in self.files.items()]
        return f"""---
library_name: {LIBRARIES[self.format]}
---

# {self.name}

Rewritten: {done}. Architecture `{self.family}`, weights in {self.dtype}.

## What the family can't say

{chr(10).join(f"- {line}" for line in said)}

{self._scales()}## What was measured

{self.table()}

Δ log p is the largest difference of a scored token's log-probability, in nats. All in float32 by
normlab {self.version}, the last line from the files in this directory. Text: {self.text}.

## Where it comes from

{chr(10).join([*made_from, *here])}

```
{self.command}
```
"""
