"""Checkpoints made elsewhere, loaded into our own Transformer."""

from normlab.pretrained.load import Checkpoint, describe, load
from normlab.pretrained.packages import PACKAGES, fetch
from normlab.pretrained.source import CheckpointError

__all__ = ["PACKAGES", "Checkpoint", "CheckpointError", "describe", "fetch", "load"]
