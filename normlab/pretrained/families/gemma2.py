"""Gemma 2: norms before and after each branch, windows in turn, soft caps."""

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    LARGEST_HEAD,
    Configs,
    Family,
    families,
    model_of,
    norm_of,
)
from normlab.pretrained.families.gemma import later
from normlab.pretrained.families.shared_names import GEMMA, GGUF_NAMES
from normlab.pretrained.keys import Keys


def read(c: Keys) -> Configs:
    """Every second layer is global."""
    shared = later(c, every=2, softcaps=(50.0, 30.0))
    model = model_of(c, c.count("head_dim", most=LARGEST_HEAD), **shared)
    return Configs(model, norm_of(c), PlacementConfig("peri"), c.count("vocab_size"))


families.register("gemma2")(Family("Gemma2ForCausalLM", read, GEMMA, GGUF_NAMES))
