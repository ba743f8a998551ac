"""How a text becomes scored tokens: named, versioned perplexity protocols."""

from normlab.evaluation.protocols.protocol import Protocol, protocols
from normlab.evaluation.protocols.windows import Windows

__all__ = ["Protocol", "Windows", "protocols"]
