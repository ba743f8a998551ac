"""Mistral 7B and Nemo: Llama whose layers may all attend to a window only."""

from normlab.model import PlacementConfig
from normlab.pretrained.families.base import (
    Configs,
    Family,
    families,
    head_size,
    model_of,
    norm_of,
    one_window,
)
from normlab.pretrained.families.shared_names import LLAMA
from normlab.pretrained.keys import Keys


def read(c: Keys) -> Configs:
    """Nemo's heads are smaller than width / heads (`head_dim`), and it has no window."""
    model = model_of(c, head_size(c), **one_window(c))
    return Configs(model, norm_of(c), PlacementConfig("pre"), c.count("vocab_size"))


families.register("mistral")(
    Family("MistralForCausalLM", read, LLAMA)
)  # in GGUF it is of architecture llama
