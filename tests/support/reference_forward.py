"""The forward pass of each pretrained family in float64 NumPy, from its papers and its weights."""

import math

import numpy as np

# Each sublayer's norms: before and after attention, before and after the MLP.
BEFORE = ("input_layernorm", None, "post_attention_layernorm", None)
AFTER = (None, "post_attention_layernorm", None, "post_feedforward_layernorm")
AROUND = (BEFORE[0], AFTER[1], "pre_feedforward_layernorm", AFTER[3])
ERF = np.vectorize(math.erf)


def rms_norm(x, weight, eps):
    """RMSNorm of the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    """LayerNorm of the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return rms_norm(x, weight, eps) + bias


def silu(x):
    """x·σ(x)."""
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    """GELU by its approximation with a hyperbolic tangent."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu(x):
    """GELU."""
    return 0.5 * x * (1 + ERF(x / np.sqrt(2)))


def capped(x, c):
    """c·tanh(x/c); None is no cap."""
    return x if c is None else c * np.tanh(x / c)


def log_softmax(logits):
    """Log-probabilities in float64."""
    y = np.float64(logits)
    y = y - y.max(-1, keepdims=True)
    return y - np.log(np.exp(y).sum(-1, keepdims=True))


def turned(x, theta):
    """Rotary positions on heads [b, l, h, k]: element i turns with element i + k/2."""
    length, half = x.shape[1], x.shape[-1] // 2
    angle = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None, :]
    return np.concatenate([z.real, z.imag], -1)


def attend(q, k, v, scale, *, window=None, causal=True, cap=None):
    """Heads [b, l, h, k] of queries, keys and values → [b, l, h·k]."""
    length, group = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (np.repeat(t, group, axis=2) for t in (k, v))
    behind = np.arange(length)[:, None] - np.arange(length)
    seen = (behind >= 0 if causal else behind == behind) & (behind < (window or length))
    scores = capped(np.einsum("bqhk,bshk->bhqs", q, k) * scale, cap)
    weights = np.exp(log_softmax(np.where(seen, scores, -np.inf)))
    return np.einsum("bhqs,bshk->bqhk", weights, v).reshape(*q.shape[:2], -1)


def forward(family, config, weights, tokens):
    """Logits [b, l, v].

    Args:
        family: a key of `tests.support.small_checkpoints`'s configs.
        config: its config.json.
        weights: by Hugging Face's names.
        tokens: [b, l].
    """
    w = {name.partition(".")[2] if name.startswith(("model.", "bert.", "transformer.")) else name:
         np.float64(value) for name, value in weights.items()}  # fmt: skip
    own = {"gpt2": _gpt2, "bert": _bert}
    if family in own:
        return own[family](config, w, tokens)
    return _decoder(family, config, w, tokens)


def _decoder(family, c, w, tokens):
    """Llama and those that came after it: RMSNorm, rotary positions, gated MLPs, no biases."""
    gemma = family.startswith("gemma")
    before, after, mlp_before, mlp_after = (
        AROUND if gemma else AFTER if family == "olmo2" else BEFORE
    )
    every = c.get("sliding_window_pattern", 2)
    act = gelu_tanh if gemma else silu

    def norm(x, name):
        weight = None if name is None else w[f"{name}.weight"] + (1.0 if gemma else 0.0)
        return x if name is None else rms_norm(x, weight, c["rms_norm_eps"])

    def heads(h, layer, part):
        y = h @ w[f"{layer}self_attn.{part}_proj.weight"].T
        y = y + w.get(f"{layer}self_attn.{part}_proj.bias", 0.0)
        own = f"{layer}self_attn.{part}_norm"
        if family == "olmo2" and part != "v":
            y = norm(y, own)
        y = y.reshape(*y.shape[:2], -1, c["head_dim"])
        return norm(y, own) if f"{own}.weight" in w and family != "olmo2" else y

    x = w["embed_tokens.weight"][tokens] * (math.sqrt(c["hidden_size"]) if gemma else 1.0)
    for i in range(c["num_hidden_layers"]):
        layer, local = f"layers.{i}.", gemma and (i + 1) % every != 0
        site = lambda name, layer=layer: name and layer + name  # noqa: E731
        h = norm(x, site(before))
        q, k, v = (heads(h, layer, part) for part in "qkv")
        theta = c.get("rope_local_base_freq", c["rope_theta"]) if local else c["rope_theta"]
        scale = c.get("query_pre_attn_scalar", c["head_dim"]) ** -0.5
        a = attend(
            turned(q, theta), turned(k, theta), v, scale,
            window=c["sliding_window"] if local else None, cap=c.get("attn_logit_softcapping"),
        )  # fmt: skip
        x = x + norm(a @ w[f"{layer}self_attn.o_proj.weight"].T, site(after))
        h = norm(x, site(mlp_before))
        gate, up = (h @ w[f"{layer}mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + norm((act(gate) * up) @ w[f"{layer}mlp.down_proj.weight"].T, site(mlp_after))
    head = w.get("lm_head.weight", w["embed_tokens.weight"])
    return capped(norm(x, "norm") @ head.T, c.get("final_logit_softcapping"))


def _gpt2(c, w, tokens):
    linear = lambda x, name: x @ w[f"{name}.weight"] + w[f"{name}.bias"]  # noqa: E731
    norm = lambda x, name: layer_norm(  # noqa: E731
        x, w[f"{name}.weight"], w[f"{name}.bias"], c["layer_norm_epsilon"]
    )
    x = w["wte.weight"][tokens] + w["wpe.weight"][: tokens.shape[1]]
    for i in range(c["n_layer"]):
        qkv = np.split(linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=-1)
        q, k, v = (t.reshape(*t.shape[:2], c["n_head"], -1) for t in qkv)
        x = x + linear(attend(q, k, v, q.shape[-1] ** -0.5), f"h.{i}.attn.c_proj")
        h = gelu_tanh(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"))
        x = x + linear(h, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def _bert(c, w, tokens):
    """The encoder; its logits are by the embedding, as it has no head of its own."""
    linear = lambda x, name: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    norm = lambda x, name: layer_norm(  # noqa: E731
        x, w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"], c["layer_norm_eps"]
    )
    words, places, types = (
        w[f"embeddings.{table}_embeddings.weight"] for table in ("word", "position", "token_type")
    )
    x = norm(words[tokens] + places[: tokens.shape[1]] + types[0], "embeddings")
    for i in range(c["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        q, k, v = (
            linear(x, f"{layer}attention.self.{part}").reshape(
                *tokens.shape, c["num_attention_heads"], -1
            )
            for part in ("query", "key", "value")
        )
        a = attend(q, k, v, q.shape[-1] ** -0.5, causal=False)
        x = norm(x + linear(a, f"{layer}attention.output.dense"), f"{layer}attention.output")
        h = linear(gelu(linear(x, f"{layer}intermediate.dense")), f"{layer}output.dense")
        x = norm(x + h, f"{layer}output")
    return x @ words.T
