"""A model together with its tokenizer and its papers: what evaluation evaluates."""

from dataclasses import dataclass, field
from typing import Any

from normlab.data.tokenizer import Tokenizer
from normlab.model import Transformer


@dataclass(frozen=True)
class LanguageModel:
    """A trained transformer, wherever it comes from.

    Args:
        name: as it stands in a table.
        model: the transformer, float32 weights.
        tokenizer: its own.
        facts: what every record of it repeats: source, hashes, configs, seed, training budget.
    """

    name: str
    model: Transformer
    tokenizer: Tokenizer
    facts: dict[str, Any] = field(default_factory=dict)
