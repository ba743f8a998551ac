"""Small checkpoints of every family, and what `transformers` computes of them in float64.

The file beside this one holds config, tensors' shapes and log-probabilities, so that no test needs
PyTorch. The weights are NumPy's, of a seed that is the tensor's name.

    python -m tests.support.family_golden      makes it again; wants torch and transformers
"""

import json
import zlib
from pathlib import Path

import numpy as np

from tests.support.small_checkpoints import write_tokenizer

FILE = Path(__file__).with_name("family_golden.json")
VOCAB, LENGTH, STEP = 300, 12, 29
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH))

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "vocab_size": VOCAB}
SMALL = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
PLAIN = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7}
OPT = {
    **IDS,
    "hidden_size": 32,
    "ffn_dim": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.4,
    "logits_scaling": 0.5,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
OLMO3_ROPE = {
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 4.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

CASES = {
    "llama": ("Llama", SMALL),
    "llama-biases": ("Llama", {**SMALL, "attention_bias": True, "rope_parameters": LINEAR}),
    "llama-3": (
        "Llama",
        {**SMALL, "tie_word_embeddings": True, "rope_parameters": LLAMA3, "head_dim": 12},
    ),
    "mistral": ("Mistral", {**SMALL, "sliding_window": 5}),
    "mistral-nemo": ("Mistral", {**SMALL, "sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2", SMALL),
    "qwen3": ("Qwen3", {**SMALL, "head_dim": 16}),
    "gemma": ("Gemma", {**SMALL, "head_dim": 16}),
    "gemma2": (
        "Gemma2",
        {**SMALL, **GEMMA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3_text": (
        "Gemma3",
        {**SMALL, **GEMMA, "num_hidden_layers": 7, "rope_parameters": GEMMA3_ROPE},
    ),
    "olmo": ("Olmo", SMALL),
    "olmo2": ("Olmo2", SMALL),
    "olmo3": ("Olmo3", {**SMALL, "num_hidden_layers": 4, "sliding_window": 5}),
    "olmo3-yarn": (
        "Olmo3",
        {**SMALL, "num_hidden_layers": 4, "sliding_window": 5, "rope_parameters": OLMO3_ROPE},
    ),
    "phi": ("Phi", {**PLAIN, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3", {**SMALL, "sliding_window": 5}),
    "phi3-partial": ("Phi3", {**SMALL, "partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    "granite": ("Granite", {**SMALL, **GRANITE}),
    "gpt_neox": ("GPTNeoX", PLAIN),
    "gpt_neox-in-turn": ("GPTNeoX", {**PLAIN, "use_parallel_residual": False}),
    "opt": ("OPT", OPT),
    "opt-350m": ("OPT", {**OPT, "word_embed_proj_dim": 24, "do_layer_norm_before": False}),
    "gpt2": ("GPT2", {**IDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
}
"""The classes of `transformers` and their settings."""
PUBLISHED = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}
"""Names in checkpoints on the hub, by those that `transformers` 5.24 has in memory."""


def weight(name, shape, family):
    """One tensor's values; those of a norm's weight are about 1."""
    values = 0.2 * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    about_one = "norm" in name or ".ln_" in name
    if about_one and name.endswith("weight") and not family.startswith("gemma"):
        values += 1
    return values.astype(np.float32)


def tensors(config, shapes):
    """All of them, by name."""
    return {name: weight(name, shape, config["model_type"]) for name, shape in shapes.items()}


def golden():
    """Case → config, shapes and log-probabilities [b, l, v]."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def write(folder, config, shapes):
    """The checkpoint as a Hugging Face directory."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors(config, shapes), folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder)
    return folder


def made(name, settings):
    """Config, shapes and log-probabilities (of each 29th token) by `transformers`, in float64."""
    import torch
    import transformers

    kind = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    stem = "Gemma3Text" if name == "Gemma3" else name
    config = getattr(transformers, f"{stem}Config")(**settings)
    config._attn_implementation = "eager"  # sdpa leaves soft caps out
    model = getattr(transformers, f"{name}{kind}")(config).eval()
    tied = {*(getattr(model, "all_tied_weights_keys", None) or ())}
    said = json.loads(config.to_json_string(use_diff=False))
    renamed = PUBLISHED.get(said["model_type"], {})
    named = {renamed.get(k, k): v for k, v in model.named_parameters() if k not in tied}
    shapes = {k: list(v.shape) for k, v in named.items()}
    with torch.no_grad():
        for key, parameter in named.items():
            values = weight(key, shapes[key], said["model_type"])
            parameter.copy_(torch.from_numpy(values))
        logits = model.double()(torch.tensor(TOKENS)).logits
    picked = torch.log_softmax(logits, -1).numpy()[..., ::STEP]
    return {"config": said, "shapes": shapes, "log_probs": picked.round(7).tolist()}


if __name__ == "__main__":
    found = {case: made(*asked) for case, asked in CASES.items()}
    FILE.write_text(json.dumps(found) + "\n", encoding="utf-8")
