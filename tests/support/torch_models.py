"""Small random models of `transformers` of other kinds than the families, and what calls them."""

from functools import partial

import torch
import transformers

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 100}
WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
MIXTRAL = WIDE | IDS | {"intermediate_size": 48, "num_key_value_heads": 2, "num_local_experts": 4}
MAMBA = IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
VIT = WIDE | {"intermediate_size": 64, "image_size": 32, "patch_size": 8}
MODELS = {
    "T5Model": ("T5Config", T5, 12),
    "MixtralForCausalLM": ("MixtralConfig", MIXTRAL, 5),
    "MambaForCausalLM": ("MambaConfig", MAMBA, 3),
    "ViTModel": ("ViTConfig", VIT, 5),
}
"""Class → its config, the config's settings, and how many norms it has."""


def other(kind):
    """A model whose every parameter is off its initial value, and a function that runs it."""
    torch.manual_seed(0)
    config, settings, _ = MODELS[kind]
    model = getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = torch.randint(0, 100, (2, 11))
    given = {"pixel_values": torch.randn(2, 3, 32, 32)} if kind == "ViTModel" else {}
    given = given or {"input_ids": tokens}
    if kind == "T5Model":
        given["decoder_input_ids"] = tokens[:, :5]
    return model, partial(_last, model, given)


def _last(model, given):
    with torch.no_grad():
        made = model(**given)
    return made.logits if "logits" in made else made.last_hidden_state
