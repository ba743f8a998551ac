"""Norms of PyTorch models."""

from normlab.torch_bridge.find import Found, find
from normlab.torch_bridge.load import TorchCheckpoint, describe
from normlab.torch_bridge.model import TorchModel, scales
from normlab.torch_bridge.replace import Replaced, replaced

__all__ = [
    "Found",
    "Replaced",
    "TorchCheckpoint",
    "TorchModel",
    "describe",
    "find",
    "replaced",
    "scales",
]
