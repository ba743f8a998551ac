"""Model families: a checkpoint's own config → ours, and where each of our weights lies in it."""

from normlab.pretrained.families.base import Configs, Family, architectures, configs, families

__all__ = ["Configs", "Family", "architectures", "configs", "families"]
