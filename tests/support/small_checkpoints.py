"""Small checkpoints that the tests of `normlab.pretrained` write: weights, configs, a tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from normlab.model.language_model import LanguageModel
from tests.conftest import forward
from tests.support.reference_forward import log_softmax

VOCAB, WIDTH, HIDDEN, LAYERS, HEADS, KV, HEAD = 260, 24, 40, 2, 4, 2, 8
EPS = 2.0**-17  # the same number in the float32 of a GGUF file

CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": HEAD,
    "max_position_embeddings": 64,
    "rms_norm_eps": EPS,
    "hidden_act": "silu",
    "rope_theta": 500.0,
}
GEMMA = {
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": None,
    "query_pre_attn_scalar": HEAD,
    "sliding_window": 5,
}
CONFIGS = {
    "llama": {**CONFIG, "model_type": "llama"},
    "qwen2": {**CONFIG, "model_type": "qwen2"},
    "qwen3": {**CONFIG, "model_type": "qwen3"},
    "olmo2": {**CONFIG, "model_type": "olmo2"},
    "gemma2": {
        **{**CONFIG, **GEMMA},
        "model_type": "gemma2",
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        **{**CONFIG, **GEMMA},
        "model_type": "gemma3_text",
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 50.0,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": 64,
        "layer_norm_epsilon": EPS,
    },
}
"""A config.json of each family that both formats know."""

BERT = {
    "model_type": "bert",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "layer_norm_eps": EPS,
    "hidden_act": "gelu",
}
ALL = {**CONFIGS, "bert": BERT}
"""A config.json of each family."""


def tensors(family: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights of each family under Hugging Face's names and in its layout."""
    rng = np.random.default_rng(seed)
    own = {"gpt2": _gpt2_shapes, "bert": _bert_shapes}
    shapes = own[family]() if family in own else _shapes(family)
    return {
        name: (0.3 * rng.standard_normal(shape) + (name.endswith("norm.weight"))).astype(np.float32)
        for name, shape in shapes.items()
    }


def _shapes(family: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    if not family.startswith("gemma"):
        shapes["lm_head.weight"] = (VOCAB, WIDTH)
    norms = {
        "llama": ("input_layernorm", "post_attention_layernorm"),
        "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
        "gemma": (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        maps = {"q": HEADS * HEAD, "k": KV * HEAD, "v": KV * HEAD}
        for part, size in maps.items():
            shapes[f"{layer}self_attn.{part}_proj.weight"] = (size, WIDTH)
            if family == "qwen2":
                shapes[f"{layer}self_attn.{part}_proj.bias"] = (size,)
        if family in ("qwen3", "gemma3"):
            shapes[f"{layer}self_attn.q_norm.weight"] = (HEAD,)
            shapes[f"{layer}self_attn.k_norm.weight"] = (HEAD,)
        if family == "olmo2":
            shapes[f"{layer}self_attn.q_norm.weight"] = (HEADS * HEAD,)
            shapes[f"{layer}self_attn.k_norm.weight"] = (KV * HEAD,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (WIDTH, HEADS * HEAD)
        for part in ("gate", "up"):
            shapes[f"{layer}mlp.{part}_proj.weight"] = (HIDDEN, WIDTH)
        shapes[f"{layer}mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        for norm in (
            norms.get(family.rstrip("23"), norms["llama"]) if family != "olmo2" else norms[family]
        ):
            shapes[f"{layer}{norm}.weight"] = (WIDTH,)
    return shapes


def _gpt2_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, WIDTH),
        "transformer.wpe.weight": (64, WIDTH),
    }
    modules = {"attn.c_attn": 3 * WIDTH, "attn.c_proj": WIDTH, "mlp.c_fc": 4 * WIDTH}
    for i in range(LAYERS):
        for module, size in modules.items():
            shapes[f"transformer.h.{i}.{module}.weight"] = (WIDTH, size)
            shapes[f"transformer.h.{i}.{module}.bias"] = (size,)
        shapes[f"transformer.h.{i}.mlp.c_proj.weight"] = (4 * WIDTH, WIDTH)
        shapes[f"transformer.h.{i}.mlp.c_proj.bias"] = (WIDTH,)
        for norm in ("ln_1", "ln_2"):
            shapes[f"transformer.h.{i}.{norm}.weight"] = (WIDTH,)
            shapes[f"transformer.h.{i}.{norm}.bias"] = (WIDTH,)
    return {**shapes, "transformer.ln_f.weight": (WIDTH,), "transformer.ln_f.bias": (WIDTH,)}


def _bert_shapes() -> dict[str, tuple[int, ...]]:
    maps = {
        "attention.self.query": (WIDTH, WIDTH),
        "attention.self.key": (WIDTH, WIDTH),
        "attention.self.value": (WIDTH, WIDTH),
        "attention.output.dense": (WIDTH, WIDTH),
        "intermediate.dense": (HIDDEN, WIDTH),
        "output.dense": (WIDTH, HIDDEN),
    }
    tables = {"word_embeddings": VOCAB, "position_embeddings": 64, "token_type_embeddings": 2}
    shapes = {f"bert.embeddings.{table}.weight": (rows, WIDTH) for table, rows in tables.items()}
    modules: dict[str, tuple[int, ...]] = {"embeddings.LayerNorm": (WIDTH,)}
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}."
        modules |= {f"{layer}{module}": shape for module, shape in maps.items()}
        modules |= {f"{layer}{part}.LayerNorm": (WIDTH,) for part in ("attention.output", "output")}
    for module, shape in modules.items():
        shapes |= {f"bert.{module}.weight": shape, f"bert.{module}.bias": shape[:1]}
    return shapes


def write_folder(
    folder: Path, config: Mapping[str, object], weights: Mapping[str, np.ndarray]
) -> str:
    """A Hugging Face directory in one file; its spec."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {k: np.ascontiguousarray(v) for k, v in weights.items()}, folder / "model.safetensors"
    )
    write_tokenizer(folder)
    return f"hf:{folder}"


def letters() -> list[str]:
    """The 256 bytes as a byte-level tokenizer writes them."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer.json without merges (256 tokens), and with nothing before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")


# --- the same as GGUF, by llama.cpp's rules of conversion

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "rope_freqs": "rope_freqs",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "self_attn.dense": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "model.final_layernorm": "output_norm",
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_GGUF_KEYS = {
    "num_hidden_layers": "block_count",
    "n_layer": "block_count",
    "hidden_size": "embedding_length",
    "n_embd": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "n_head": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "n_positions": "context_length",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "rope_local_base_freq": "rope.freq_base_swa",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "rope_theta": "rope.freq_base",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "use_parallel_residual": "use_parallel_residual",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}


def gguf_tensor(
    family: str, name: str, value: np.ndarray, head: int = HEAD
) -> tuple[str, np.ndarray]:
    """One of Hugging Face's tensors as llama.cpp's converter writes it; `head`: elements of one."""
    module, leaf = name.rsplit(".", 1)
    block = ""
    if ".layers." in module or ".h." in module:
        _, _, i, module = module.split(".", 3)
        block = f"blk.{i}."
    if family.startswith("gemma") and value.ndim == 1:
        value = value + 1
    if family == "gpt2" and value.ndim == 2 and block:
        value = value.T
    if family == "gptneox" and module == "attention.query_key_value":  # the three of each head
        by_head = value.reshape(-1, 3, head, *value.shape[1:])
        value = by_head.swapaxes(0, 1).reshape(value.shape)
    if family in ("llama", "granite", "olmo") and module in (
        "self_attn.q_proj",
        "self_attn.k_proj",
    ):
        halves = value.reshape(-1, 2, head // 2, *value.shape[1:])
        value = halves.swapaxes(1, 2).reshape(value.shape)
    after = "post_attention_norm" if family in ("olmo2", "gemma2", "gemma3") else "ffn_norm"
    names = {**_GGUF_NAMES, "post_attention_layernorm": after}
    return f"{block}{names[module]}.{leaf}", np.ascontiguousarray(value)


def head_size(config: Mapping[str, object]) -> int:
    """Elements of a head; that of the small configs here where there is none in it."""
    heads, said = config.get("num_attention_heads"), config.get("head_dim")
    return said or (config["hidden_size"] // heads if heads else HEAD)  # type: ignore


def write_gguf(
    path: Path,
    family: str,
    config: Mapping[str, object],
    weights: Mapping[str, np.ndarray],
    **metadata: object,
) -> str:
    """A GGUF file in float32 with a byte-level tokenizer; its spec."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, family)
    values = {f"{family}.{_GGUF_KEYS[k]}": v for k, v in config.items() if k in _GGUF_KEYS}
    if family == "gpt2":
        values["gpt2.feed_forward_length"] = 4 * WIDTH
    for key, value in (values | metadata).items():
        if value is None:
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, str(value))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*letters(), "ab"])
    writer.add_token_merges(["a b"])
    for name, value in weights.items():
        writer.add_tensor(*gguf_tensor(family, name, value, head_size(config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return f"gguf:{path}"


def log_probs(lm: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    """The model's log-probabilities [b, l, v] in fp32, but for the softmax."""
    return log_softmax(forward(lm.model, tokens))
