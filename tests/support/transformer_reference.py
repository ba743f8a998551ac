"""The decoder in float64 NumPy, from the papers' formulas: every field, every placement.

It reads a model's arrays by name and nothing of its structure, so that parameters can be moved.
"""

import math

import numpy as np
from flax import nnx
from scipy.special import erf, expit

from normlab.runs.names import to_names

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * expit(x),
}


def weights(model):
    """Every array of a model by name, in float64."""
    return {name: np.asarray(a, np.float64) for name, a in to_names(nnx.state(model)).items()}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def soft_cap(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def rotated(x, theta, divisors=(), factor=1.0, turned=None):
    """Rotary positions of [b, l, h, k]: element i turns with element i + k/2; k = `turned`."""
    size = turned or x.shape[-1]
    half = size // 2
    out = np.array(x)
    for i in range(half):
        angle = np.arange(x.shape[1]) * theta ** (-2 * i / size)
        angle = (angle / (divisors[i] if divisors else 1.0))[:, None]
        a, b = factor * x[..., i], factor * x[..., i + half]
        out[..., i] = a * np.cos(angle) - b * np.sin(angle)
        out[..., i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


class Reference:
    """One forward pass; `inputs` and `streams` hold what `Context` captures of it.

    Args:
        model: its configs are kept, and its arrays unless `arrays` are given.
        arrays: by name.
    """

    def __init__(self, model, arrays=None):
        self.c, self.norms, self.placement = model.config, model.norm, model.placement
        self.w = weights(model) if arrays is None else arrays
        self.inputs, self.streams = {}, []

    def logits(self, tokens):
        """Those of the model."""
        c, w = self.c, self.w
        x = self.embed_tokens(tokens)
        self.streams.append(x)
        for layer in range(1, c.layers + 1):
            entered = x
            for part in ("attention", "mlp"):
                x = self.sublayer(x, entered, layer, part)
            self.streams.append(x)
        if "norm_final" in self.placement.around(c.layers):
            x = self.norm("norm_final", x)
        if c.embed_width is not None:
            x = x @ w["embed_out.kernel"]
        table = w["embed.embedding"]
        head = w["head.kernel"] if not c.tied else table.T
        y = (x @ head + w.get("head.bias", 0.0)) * c.logit_factor
        if c.tied and c.embed_length is not None:
            y = y / np.linalg.norm(table, axis=1)
        return soft_cap(y, c.logit_softcap)

    def embed_tokens(self, tokens):
        c, w = self.c, self.w
        x = c.embed_factor * w["embed.embedding"][tokens]
        if c.embed_length is not None:
            x = w["embed_length"] * x / np.linalg.norm(x, axis=-1, keepdims=True)
        if c.embed_width is not None:
            x = x @ w["embed_in.kernel"]
        if c.positions == "learned":
            x = x + w["positions.embedding"][: tokens.shape[1]]
        x = x * w.get("embed_scale", 1.0)
        return self.norm("norm_embed", x) if self.placement.norm_embed else x

    def sublayer(self, x, entered, layer, part):
        """The stream after attention or MLP of block `layer`, which counts from 1."""
        name, layers, row = f"blocks.{layer - 1}.{part}", self.c.layers, self.placement.type
        branch = getattr(self, part)

        def n(kind, x):
            return self.norm(f"{name}.{kind}", x)

        def f(x):
            return self.c.branch_factor * branch(f"{name}.branch", name, x, layer)

        if row == "mix-ln":
            share = self.placement.post_share
            posts = max(1, layers // 4) if share is None else math.floor(share * layers)
            row = "post" if layer <= posts else "pre"
        if row == "hybridnorm-star":
            row = "pre" if layer == 1 else "hybridnorm"
        if row == "hybridnorm":
            return n("post_norm", x + f(x)) if part == "attention" else x + f(x)
        if row == "normformer":
            row = "peri" if part == "attention" else "pre"
        return {
            "pre": lambda: x + f(n("norm_in", x)),
            "parallel": lambda: x + f(n("norm_in", entered)),
            "sub-ln": lambda: x + f(n("norm_in", x)),
            "lns": lambda: x + f(n("norm_in", x) / np.sqrt(layer)),
            "post": lambda: n("post_norm", x + f(x)),
            "peri": lambda: x + n("norm_out", f(n("norm_in", x))),
            "sandwich": lambda: x + n("norm_out", f(n("norm_in", x))),
            "reordered": lambda: x + n("norm_out", f(x)),
            "deepnorm": lambda: n("post_norm", (2 * layers) ** 0.25 * x + f(x)),
            "keel": lambda: n("post_norm", 2 * layers * x + f(n("norm_in", x))),
        }[row]()

    def attention(self, name, outer, x, layer):
        """softmax(QKᵀ/√k + mask) V P, head by head."""
        c, (b, length, _) = self.c, x.shape
        local = c.window is not None and not (c.global_every and layer % c.global_every == 0)
        q, k, v = (
            self.linear(f"{name}.{m}", x).reshape(b, length, -1, c.head_size)
            for m in ("query", "key", "value")
        )
        v = self.optional(f"{name}.norm_v", f"{outer}.value.norm_v", v)
        own = local and c.local_rope_theta is not None
        turn = (c.local_rope_theta,) if own else (c.rope_theta, c.rope_divisors, c.rope_factor)

        def normed(q, k):
            q = self.optional(f"{name}.norm_q", f"{outer}.query.norm_qk", q)
            return q, self.optional(f"{name}.norm_k", f"{outer}.key.norm_qk", k)

        if not self.placement.norm_qk_rotated:
            q, k = normed(q, k)
        if c.positions == "rotary":
            q, k = (rotated(t, *turn, turned=c.rope_dim) for t in (q, k))
        if self.placement.norm_qk_rotated:
            q, k = normed(q, k)
        age = np.arange(length)[:, None] - np.arange(length)
        seen = (age >= 0) | (not c.causal)
        if local:
            seen &= age < c.window
        heads = np.empty(q.shape)
        scale = c.head_size**-0.5 if c.attention_scale is None else c.attention_scale
        for h in range(c.heads):
            g = h // (c.heads // c.kv)
            scores = soft_cap(scale * q[:, :, h] @ k[:, :, g].swapaxes(1, 2), c.attention_softcap)
            heads[:, :, h] = softmax(np.where(seen, scores, -np.inf)) @ v[:, :, g]
        if self.placement.type == "normformer":
            heads = heads * self.w[f"{name}.head_scale"][:, None]
        inner = self.optional(f"{name}.sub_norm", f"{outer}.sub_norm", heads.reshape(b, length, -1))
        return self.linear(f"{name}.out", inner)

    def mlp(self, name, outer, x, layer):
        """F(xE)G, or (F(xE) ⊙ xB)G."""
        h = ACTIVATIONS[self.c.activation](self.linear(f"{name}.gate", x))
        if self.c.gated:
            h = h * self.linear(f"{name}.up", x)
        return self.linear(
            f"{name}.down", self.optional(f"{name}.sub_norm", f"{outer}.sub_norm", h)
        )

    def linear(self, name, x):
        y = x @ self.w[f"{name}.kernel"]
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def has(self, name):
        return f"{name}.weight" in self.w

    def optional(self, name, site, x):
        """What a norm inside a branch gives; a test of the sites says which there must be."""
        if not self.has(name):
            return x
        rows = x.reshape(*x.shape[:2], -1, self.w[f"{name}.weight"].size)
        return self.norm(name, rows if x.ndim == 4 else x, site).reshape(x.shape)

    def norm(self, name, x, site=None):
        """LayerNorm or RMSNorm of rows."""
        self.inputs[site or name] = x
        if self.norms.type == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        y = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + self.norms.eps)
        return y * self.w.get(f"{name}.weight", 1.0) + self.w.get(f"{name}.bias", 0.0)


def nll(logits, targets):
    """−log p of each target."""
    p = softmax(logits)
    return -np.log(np.take_along_axis(p, targets[..., None], -1))[..., 0]
