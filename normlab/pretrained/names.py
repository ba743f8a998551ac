"""Where each of our weights lies in a checkpoint, under which name and in which layout."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from normlab.model import ModelConfig
from normlab.pretrained.source import CheckpointError

Shape = tuple[int, ...]
QKV = tuple(f"attention.branch.{part}" for part in ("query", "key", "value"))


@dataclass(frozen=True)
class Stored:
    """One of our weights as a checkpoint stores it.

    Args:
        name: of the stored tensor.
        transposed: stored [out, in], as PyTorch does; ours are [in, out].
        part: (k, n): the k-th of n equal parts along the outputs.
        heads: rows of each head stored in rotary pairs (0, k/2), (1, k/2 + 1), …: this many heads.
        offset: added to the values (Gemma stores γ − 1).
        plus_row: a second tensor, whose row 0 is added to every row.
    """

    name: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)
    heads: int = 0
    offset: float = 0.0
    plus_row: str | None = None

    def shape(self, ours: Shape) -> Shape:
        """The stored tensor's shape, given ours."""
        whole = (*ours[:-1], ours[-1] * self.part[1])
        return whole[::-1] if self.transposed else whole

    def ours(self, stored: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Our weight, from the stored tensor."""
        weight = _halves(stored, self.heads) if self.heads else stored
        weight = weight.T if self.transposed else weight
        if self.part[1] > 1:
            weight = np.split(weight, self.part[1], axis=-1)[self.part[0]]
        return weight + np.float32(self.offset) if self.offset else weight


def _halves(stored: Float[np.ndarray, "o ..."], heads: int) -> Float[np.ndarray, "o ..."]:
    """Rotary pairs from neighbours to halves: llama.cpp's layout for Llama back to ours."""
    pairs = stored.reshape(heads, -1, 2, *stored.shape[1:])
    return pairs.swapaxes(1, 2).reshape(stored.shape)


@dataclass(frozen=True)
class Names:
    """How a format names and lays out the modules of a family.

    Args:
        modules: our module → theirs; `{i}` is the block. Queries,
            keys and values may share one, of which they are the thirds.
        transposed: linear maps are stored [out, in], as the head always is.
        gain_offset: added to every stored weight.
        paired: queries and keys are stored in rotary pairs of neighbours.
        plus_row: our module → a stored tensor whose row 0 is added to it.
        prefixes: the first of them that stands before a name is no part of it.
        endings: other endings that a name may have → those that it has here.
        ignored: stored tensors that hold nothing that we need (a pattern).
    """

    modules: Mapping[str, str]
    transposed: bool = True
    gain_offset: float = 0.0
    paired: bool = False
    plus_row: Mapping[str, str] | None = None
    prefixes: tuple[str, ...] = ()
    endings: tuple[tuple[str, str], ...] = ()
    ignored: str = "$^"

    def stored(self, path: str, config: ModelConfig) -> Stored:
        """Where our weight `path` ("blocks.3.mlp.branch.up.kernel") is stored."""
        module, leaf = path.rsplit(".", 1)
        block = re.match(r"blocks\.(\d+)\.", module)
        if block:
            module = module[block.end() :]
        theirs = self.modules[module]
        fused = [m for m in QKV if self.modules[m] == theirs]
        part = (fused.index(module), len(fused)) if len(fused) > 1 else (0, 1)
        kind = "bias" if leaf == "bias" else "weight"
        stored = Stored(
            f"{theirs.format(i=block[1] if block else '')}.{kind}",
            part=part,
            plus_row=(self.plus_row or {}).get(module),
        )
        if leaf == "weight":
            return replace(stored, offset=self.gain_offset)
        heads = {"attention.branch.query": config.heads, "attention.branch.key": config.kv}
        if self.paired and leaf in ("kernel", "bias"):
            stored = replace(stored, heads=heads.get(module, 0))
        transposed = self.transposed or module == "head"  # PyTorch's, in GPT-2 too
        return replace(stored, transposed=leaf == "kernel" and transposed)

    def in_file(self, names: Iterable[str]) -> dict[str, str]:
        """Our spelling of each stored name (without a prefix, one ending) → the file's."""
        found: dict[str, str] = {}
        for name in names:
            other = found.setdefault(self._spelled(name), name)
            if other != name and not re.match(self.ignored, self._spelled(name)):
                raise CheckpointError(
                    f"{other} and {name} are two names of one weight: expected one of them"
                )
        return found

    def _spelled(self, name: str) -> str:
        name = name.removeprefix(next(filter(name.startswith, self.prefixes), ""))
        for old, new in self.endings:
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name


_LAYER = "layers.{i}."
_LLAMA = {
    "embed": "embed_tokens",
    "head": "lm_head",
    "norm_final": "norm",
    "attention.norm_in": f"{_LAYER}input_layernorm",
    "attention.norm_out": f"{_LAYER}post_attention_layernorm",
    "attention.branch.query": f"{_LAYER}self_attn.q_proj",
    "attention.branch.key": f"{_LAYER}self_attn.k_proj",
    "attention.branch.value": f"{_LAYER}self_attn.v_proj",
    "attention.branch.out": f"{_LAYER}self_attn.o_proj",
    "attention.branch.norm_q": f"{_LAYER}self_attn.q_norm",
    "attention.branch.norm_k": f"{_LAYER}self_attn.k_norm",
    "mlp.norm_in": f"{_LAYER}post_attention_layernorm",
    "mlp.norm_out": f"{_LAYER}post_feedforward_layernorm",
    "mlp.branch.gate": f"{_LAYER}mlp.gate_proj",
    "mlp.branch.up": f"{_LAYER}mlp.up_proj",
    "mlp.branch.down": f"{_LAYER}mlp.down_proj",
}
_BUFFERS = r".*rotary_emb\.inv_freq$"

LLAMA = Names(_LLAMA, prefixes=("model.",), ignored=_BUFFERS)
"""Llama, Qwen 2 and 3, OLMo 2 in Hugging Face's names."""

GEMMA = Names(
    {**_LLAMA, "mlp.norm_in": f"{_LAYER}pre_feedforward_layernorm"},
    gain_offset=1.0,
    prefixes=("language_model.model.", "model.language_model.", "language_model.", "model."),
    ignored=rf"{_BUFFERS}|(vision_tower|multi_modal_projector)\.",
)
"""Gemma 2 and 3 in Hugging Face's names, norm weights 1 + w; of what sees, the text part."""

GPT2 = Names(
    {
        "embed": "wte",
        "positions": "wpe",
        "head": "lm_head",
        "norm_final": "ln_f",
        "attention.norm_in": "h.{i}.ln_1",
        "attention.branch.query": "h.{i}.attn.c_attn",
        "attention.branch.key": "h.{i}.attn.c_attn",
        "attention.branch.value": "h.{i}.attn.c_attn",
        "attention.branch.out": "h.{i}.attn.c_proj",
        "mlp.norm_in": "h.{i}.ln_2",
        "mlp.branch.gate": "h.{i}.mlp.c_fc",
        "mlp.branch.down": "h.{i}.mlp.c_proj",
    },
    transposed=False,
    prefixes=("transformer.",),
    ignored=r"h\.\d+\.attn\.(masked_)?bias$",
)
"""GPT-2 in Hugging Face's names: maps stored [in, out], one for queries, keys and values."""

BERT = Names(
    {
        "embed": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "norm_embed": "embeddings.LayerNorm",
        "attention.branch.query": "encoder.layer.{i}.attention.self.query",
        "attention.branch.key": "encoder.layer.{i}.attention.self.key",
        "attention.branch.value": "encoder.layer.{i}.attention.self.value",
        "attention.branch.out": "encoder.layer.{i}.attention.output.dense",
        "attention.post_norm": "encoder.layer.{i}.attention.output.LayerNorm",
        "mlp.branch.gate": "encoder.layer.{i}.intermediate.dense",
        "mlp.branch.down": "encoder.layer.{i}.output.dense",
        "mlp.post_norm": "encoder.layer.{i}.output.LayerNorm",
    },
    plus_row={"positions": "embeddings.token_type_embeddings.weight"},
    prefixes=("bert.",),
    endings=(("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")),
    ignored=r"(pooler|cls|classifier|qa_outputs)\.|embeddings\.position_ids$",
)
"""BERT's encoder, whatever head stands on it.

Every token is of type 0, whose embedding goes into the positions'.
"""

_BLOCK = "blk.{i}."
_GGUF = {
    "embed": "token_embd",
    "positions": "position_embd",
    "head": "output",
    "norm_final": "output_norm",
    "attention.norm_in": f"{_BLOCK}attn_norm",
    "attention.norm_out": f"{_BLOCK}post_attention_norm",
    "attention.branch.query": f"{_BLOCK}attn_q",
    "attention.branch.key": f"{_BLOCK}attn_k",
    "attention.branch.value": f"{_BLOCK}attn_v",
    "attention.branch.out": f"{_BLOCK}attn_output",
    "attention.branch.norm_q": f"{_BLOCK}attn_q_norm",
    "attention.branch.norm_k": f"{_BLOCK}attn_k_norm",
    "mlp.norm_in": f"{_BLOCK}ffn_norm",
    "mlp.norm_out": f"{_BLOCK}post_ffw_norm",
    "mlp.branch.gate": f"{_BLOCK}ffn_gate",
    "mlp.branch.up": f"{_BLOCK}ffn_up",
    "mlp.branch.down": f"{_BLOCK}ffn_down",
}

GGUF_NAMES = Names(_GGUF, ignored=r"rope_freqs\.weight$")
"""GGUF, whose files hold Gemma's norm weights as 1 + w already."""

GGUF_LLAMA = replace(GGUF_NAMES, paired=True)
"""GGUF's Llama, whose queries and keys llama.cpp stores in rotary pairs of neighbours."""

GGUF_GPT2 = Names(
    {
        **_GGUF,
        "attention.branch.query": f"{_BLOCK}attn_qkv",
        "attention.branch.key": f"{_BLOCK}attn_qkv",
        "attention.branch.value": f"{_BLOCK}attn_qkv",
        "mlp.branch.gate": f"{_BLOCK}ffn_up",
    }
)
"""GGUF's GPT-2: one map for queries, keys and values, and no gate."""
