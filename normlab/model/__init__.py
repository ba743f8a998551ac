"""Placements, attention, MLP, block, transformer."""

from normlab.model.compute import ComputeConfig
from normlab.model.config import ModelConfig
from normlab.model.context import Context
from normlab.model.placement import Placement, PlacementConfig, placements
from normlab.model.token_model import TokenModel
from normlab.model.transformer import Transformer

__all__ = [
    "ComputeConfig",
    "Context",
    "ModelConfig",
    "Placement",
    "PlacementConfig",
    "TokenModel",
    "Transformer",
    "placements",
]
