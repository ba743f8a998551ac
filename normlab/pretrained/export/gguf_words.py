"""A model in the words of a GGUF file's metadata, as llama.cpp reads them."""

from typing import Any

from normlab.model import ModelConfig, Transformer

LOCAL_AND_GLOBAL = ("gemma2", "gemma3")
SOFT_CAPPED = ("gemma2", "gemma3")


def words(model: Transformer, arch: str) -> dict[str, Any]:
    """What a file says of size, shape and constants, without the architecture before each key.

    Whole numbers are of type uint32 there, others float32. What an architecture has no word for is
    left out: `gguf.write` compares what the words are read as with the model.
    """
    c, norm = model.config, model.norm
    epsilon = "layer_norm_rms_epsilon" if norm.type == "rmsnorm" else "layer_norm_epsilon"
    said = {
        "vocab_size": model.embed.num_embeddings,
        "context_length": c.max_length,
        "embedding_length": c.width,
        "block_count": c.layers,
        "feed_forward_length": c.hidden_size,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv,
        f"attention.{epsilon}": float(getattr(norm, "eps", 0.0)),
    }
    if c.positions == "rotary":
        said |= _rotary(c)
    if c.window is not None:
        said |= _window(c, arch)
    return said | _own(model, arch)


def _rotary(c: ModelConfig) -> dict[str, Any]:
    """Divisors that differ are a tensor, `divisors`."""
    said: dict[str, Any] = {
        "attention.key_length": c.head_size,
        "attention.value_length": c.head_size,
        "rope.dimension_count": c.head_size if c.rope_dim is None else c.rope_dim,
        "rope.freq_base": float(c.rope_theta),
    }
    if c.rope_divisors and divisors(c) is None:
        said |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(c.rope_divisors[0])}
    return said


def divisors(c: ModelConfig) -> tuple[float, ...] | None:
    """Those of the rotary frequencies, where they aren't all one."""
    return c.rope_divisors if len(set(c.rope_divisors)) > 1 else None


def _window(c: ModelConfig, arch: str) -> dict[str, Any]:
    said: dict[str, Any] = {"attention.sliding_window": c.window}
    if arch in LOCAL_AND_GLOBAL:
        said["attention.sliding_window_pattern"] = c.global_every or c.layers + 1
    if c.local_rope_theta is not None:
        said["rope.freq_base_swa"] = float(c.local_rope_theta)
    return said


def _own(model: Transformer, arch: str) -> dict[str, Any]:
    """What few architectures have words for."""
    c, said = model.config, dict[str, Any]()
    if arch in SOFT_CAPPED:
        caps = {"attn": c.attention_softcap, "final": c.logit_softcap}
        said = {f"{k}_logit_softcapping": cap for k, cap in caps.items() if cap is not None}
    if arch == "gptneox":
        said["use_parallel_residual"] = model.placement.type == "parallel"
    if arch == "granite":
        said = {
            "embedding_scale": c.embed_factor,
            "residual_scale": c.branch_factor,
            "attention.scale": c.attention_scale or c.head_size**-0.5,
            "logit_scale": 1.0 / c.logit_factor,
        }
    return said
