"""How a text becomes scored tokens: named, versioned perplexity protocols."""

from normlab.protocols.protocol import Protocol, protocols
from normlab.protocols.windows import Windows

__all__ = ["Protocol", "Windows", "protocols"]
