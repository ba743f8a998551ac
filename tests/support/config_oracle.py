"""What mutated files say, read by other code than ours: strictly, and for a few families only."""

import copy
import json
import math

import numpy as np

ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu",
    "silu": "silu", "swish": "silu",
}  # fmt: skip


class Refused(Exception):
    """What was read must not be loaded."""


def need(condition, what):
    if not condition:
        raise Refused(what)


def strict_json(data):
    """JSON in which no key stands twice."""

    def once(pairs):
        need(len(dict(pairs)) == len(pairs), "a key twice")
        return dict(pairs)

    return json.loads(data.decode("utf-8"), object_pairs_hook=once)


# --- config.json

SIZES = {
    "llama": [
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim",
    ],
    "gpt2": ["vocab_size", "n_embd", "n_layer", "n_positions"],
}  # fmt: skip
SIZES["gemma3"] = SIZES["llama"]


def number(value, zero=False):
    need(isinstance(value, (int, float)) and not isinstance(value, bool), f"{value!r}: no number")
    need(math.isfinite(value) and (value > 0 or (zero and value == 0)), f"{value!r}: out of bounds")
    return float(value)


def count(value):
    need(type(value) is int and value >= 1, f"{value!r}: no count")
    return value


def ids(value):
    given = [] if value is None else value if isinstance(value, list) else [value]
    need(all(type(i) is int and -1 <= i < 260 for i in given), f"{value!r}: no ids")
    return [i for i in given if i >= 0]


def told(family, c, base):
    """(config as facts have it, the token that begins a text) by a config.json.

    Whatever the weights fix, sizes above all, must be as it was.
    """
    from tests.support.small_checkpoints import CONFIGS

    need(isinstance(c, dict) and c.get("model_type") == CONFIGS[family]["model_type"], "model_type")
    made = copy.deepcopy(base)
    for size in SIZES[family]:
        need(type(c.get(size)) is int and c[size] == CONFIGS[family][size], size)
    {"llama": _llama, "gemma3": _gemma3, "gpt2": _gpt2}[family](c, made["model"])
    eps = c.get("layer_norm_epsilon" if family == "gpt2" else "rms_norm_eps")
    made["norm"]["eps"] = number(eps, zero=True)
    begins = [*ids(c.get("bos_token_id")), *ids(c.get("eos_token_id"))]
    ids(c.get("pad_token_id"))
    return made, begins[0] if begins else None


def _rest(c, key, default):
    return default if c.get(key) is None else c[key]


def _llama(c, m):
    m["max_length"] = count(c.get("max_position_embeddings"))
    m["activation"] = ACTIVATIONS[c.get("hidden_act")]
    m["rope_theta"] = number(_rest(c, "rope_theta", 1e4))
    scaling = _rest(c, "rope_scaling", {})
    theta = _rest(scaling, "rope_theta", None)
    need(theta in (None, m["rope_theta"]), "two values of rope_theta")
    kind = _rest(scaling, "rope_type", "default")
    need(kind in ("default", "linear"), "rope_type")
    if kind == "default":
        need(_rest(scaling, "factor", 1) == 1, "a factor of no scaling")
    m["rope_divisors"] = [number(scaling["factor"])] * 4 if kind == "linear" else []


def _gemma3(c, m):
    need(_rest(c, "tie_word_embeddings", True) is True, "there is no head")
    m["max_length"] = count(c.get("max_position_embeddings"))
    act = c.get("hidden_activation")
    m["activation"] = ACTIVATIONS[act] if act is not None else _older(c["hidden_act"])
    m["attention_scale"] = number(c.get("query_pre_attn_scalar")) ** -0.5
    m["rope_theta"] = number(_rest(c, "rope_theta", 1e6))
    s, f = "sliding_attention", "full_attention"
    every = set()
    if (types := c.get("layer_types")) is not None:
        every.add({(s, f): 2, (f, f): 1, (s, s): 3}[tuple(types)])
    if c.get("sliding_window_pattern") is not None:
        every.add(min(3, count(c["sliding_window_pattern"])))
    (n,) = every or {3}  # of two layers none is global where each third is, or each sixth
    m["window"] = count(c.get("sliding_window")) if n > 1 else None
    m["global_every"] = 2 if n == 2 else None
    local = number(_rest(c, "rope_local_base_freq", 1e4)) if n > 1 else None
    m["local_rope_theta"] = local


def _older(act):
    return "gelu_tanh" if act == "gelu" else ACTIVATIONS[act]


def _gpt2(c, m):
    m["activation"] = ACTIVATIONS[_rest(c, "activation_function", "gelu_new")]
    m["heads"] = count(c.get("n_head"))
    need(24 % m["heads"] == 0, "heads")


# --- safetensors


def strict_safetensors(data):
    """Every tensor of a file in which each byte belongs to one."""
    size = int.from_bytes(data[:8], "little")
    header, rest = strict_json(data[8 : 8 + size]), data[8 + size :]
    at, found = 0, {}
    for name, told in sorted(
        ((n, t) for n, t in header.items() if n != "__metadata__"),
        key=lambda pair: pair[1]["data_offsets"],
    ):
        first, last = told["data_offsets"]
        need(set(told) == {"dtype", "shape", "data_offsets"}, name)
        need(first == at and told["dtype"] == "F32" and last <= len(rest), name)
        need(last - first == 4 * math.prod(told["shape"]), name)
        found[name] = np.frombuffer(rest[first:last], "<f4").reshape(told["shape"])
        at = last
    need(at == len(rest), "bytes left")
    return found


# --- GGUF


def gguf_header_size(path):
    """Bytes before the first tensor."""
    import gguf

    return min(tensor.data_offset for tensor in gguf.GGUFReader(path).tensors)


def check_gguf_layout(path):
    """No tensor shares a byte with another, or reaches beyond the file; no key stands twice."""
    import gguf

    reader = gguf.GGUFReader(path)
    places = sorted((t.data_offset, t.data_offset + t.n_bytes) for t in reader.tensors)
    ends = [*(first for first, _ in places[1:]), path.stat().st_size]
    need(all(last <= then for (_, last), then in zip(places, ends, strict=True)), "overlap")
    need(len({t.name for t in reader.tensors}) == len(places), "a name twice")
    need(not any("_duplicate" in key or "[dup" in key for key in reader.fields), "a key twice")


def _metadata(path):
    """Of each key (type, value, element type), as the gguf package reads them."""
    import gguf

    found = {}
    for key, field in gguf.GGUFReader(path).fields.items():
        if not key.startswith("GGUF."):
            kind = field.types[0]
            found[key] = (kind, field.contents(), field.types[-1] if len(field.types) > 1 else None)
    return found


def rewrite_gguf(source, target, change=lambda metadata: None):
    """What the gguf package reads in a file, written by it.

    Args:
        source: a file.
        target: where to; may be the same.
        change: of the metadata, in place: key → (type, value, type of its elements).
    """
    import gguf

    metadata = _metadata(source)
    tensors = [(t.name, np.array(t.data), t.tensor_type) for t in gguf.GGUFReader(source).tensors]
    arch = metadata.pop("general.architecture", (None, "none", None))[1]
    change(metadata)
    writer = gguf.GGUFWriter(target, arch)
    for key, (kind, value, inner) in metadata.items():
        writer.add_key_value(key, value, kind, inner)
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def told_by_gguf(family, path, base):
    """The config as facts have it by the metadata; sizes must be as they were."""
    m = {key: value for key, (_, value, _) in _metadata(path).items()}
    made = copy.deepcopy(base)
    sizes = {
        "block_count": 2, "embedding_length": 24, "feed_forward_length": 40,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 8,
    }  # fmt: skip
    for key, size in sizes.items():
        value = m.get(f"{family}.{key}")
        need(type(value) is int and value == size, key)
    made["model"]["max_length"] = count(m.get(f"{family}.context_length"))
    made["model"]["rope_theta"] = number(m.get(f"{family}.rope.freq_base", 1e4))
    factor = number(m.get(f"{family}.rope.scaling.factor", 0), zero=True)
    made["model"]["rope_divisors"] = [] if factor in (0, 1) else [factor] * 4
    eps = m.get(f"{family}.attention.layer_norm_rms_epsilon")
    made["norm"]["eps"] = number(eps, zero=True)
    return made
