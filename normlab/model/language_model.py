"""A model together with its tokenizer and its papers: what evaluation evaluates."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from normlab.data.tokenizer import Tokenizer
from normlab.model import TokenModel

M = TypeVar("M", bound=TokenModel)


@dataclass(frozen=True)
class LanguageModel(Generic[M]):
    """A trained model, wherever it comes from.

    Args:
        name: as it stands in a table.
        model: a `Transformer` mostly, float32 weights.
        tokenizer: its own.
        facts: what every record of it repeats: source, hashes, configs, seed, training budget.
    """

    name: str
    model: M
    tokenizer: Tokenizer
    facts: dict[str, Any] = field(default_factory=dict)
