"""The size and shape of a transformer."""

import math
from dataclasses import dataclass

from normlab.config import field, require
from normlab.norms import NormConfig
from normlab.norms.around import around
from normlab.registry import choice

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
POSITIONS = ("learned", "rotary", "none")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder, GPT-2-like or Llama-like or between. Widths are in elements, lengths in tokens."""

    layers: int = field(4, "number of blocks, each one attention and one MLP")
    width: int = field(128, "d, elements of the residual stream")
    heads: int = field(4, "query heads")
    kv_heads: int | None = field(None, "key/value heads (grouped queries); null: as many as heads")
    head_dim: int | None = field(None, "elements of one head; null: width / heads")
    hidden: int | None = field(None, "elements inside the MLP; null: 4·width, gated 8/3·width")
    activation: str = field("silu", f"the MLP's non-linearity: {', '.join(ACTIVATIONS)}")
    gated: bool = field(True, "gated MLP, F(xE) ⊙ xB, then G (as in Llama); false: F(xE), then G")
    positions: str = field("rotary", f"how positions enter: {', '.join(POSITIONS)}")
    max_length: int = field(1024, "longest sequence (rows of the learned table; a bound otherwise)")
    rope_theta: float = field(10000.0, "base of the rotary frequencies")
    rope_divisors: tuple[float, ...] = field((), "one divisor per rotary frequency (long contexts)")
    rope_factor: float = field(1.0, "constant factor on what has turned, in global blocks (YaRN)")
    rope_dim: int | None = field(None, "elements of a head that turn, the first ones; null: all")
    causal: bool = field(True, "attend to earlier tokens only; false: an encoder")
    window: int | None = field(None, "tokens that a local block attends to; null: no local blocks")
    global_every: int | None = field(None, "each n-th block is global among local ones; null: none")
    local_rope_theta: float | None = field(None, "rope_theta of local blocks; null: the same")
    attention_scale: float | None = field(None, "factor on qk; null: 1/√(head size)")
    attention_softcap: float | None = field(None, "c of c·tanh(qk/c) before softmax; null: none")
    logit_softcap: float | None = field(None, "c in c·tanh(logit/c) after the head; null: none")
    embed_factor: float = field(1.0, "constant factor on the embedding (Gemma: √d)")
    embed_width: int | None = field(
        None, "elements of an embedding row, with a map to width and one back; null: width"
    )
    branch_factor: float = field(1.0, "constant factor on what each branch adds (Granite)")
    logit_factor: float = field(1.0, "constant factor on the logits (Granite)")
    embed_length: float | None = field(
        None,
        "initial length of every embedding row, one learned number (FixNorm); null: rows free",
        initial=True,
    )
    tied: bool = field(True, "the head is the embedding, transposed")
    bias: bool = field(False, "linear maps have biases")
    qkv_bias: bool | None = field(None, "queries, keys and values have biases; null: as bias says")
    mlp_bias: bool | None = field(None, "the MLP's maps have biases; null: as bias says")
    head_bias: bool = field(False, "a head of its own has a bias")
    dropout: float = field(0.0, "probability of dropping an element of embedding and branches")
    init_std: float | None = field(
        None,
        "standard deviation of initial weights (output maps: /√(2·layers)); null: √(2/5d)",
        initial=True,
    )

    def __post_init__(self) -> None:
        choice("model.activation", self.activation, ACTIVATIONS)
        choice("model.positions", self.positions, POSITIONS)
        for name in ("layers", "width", "heads", "max_length", "kv_heads", "head_dim", "hidden"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"model.{name} = {value}: expected a number ≥ 1")
        for name in ("rope_theta", "embed_factor", "branch_factor", "logit_factor"):
            value = getattr(self, name)
            require(value > 0, f"model.{name} = {value}: expected a number > 0")
        self._check_heads()
        self._check_attention()
        require(
            not (self.tied and self.head_bias),
            "model.head_bias = True means nothing to a tied head: set model.tied=false",
        )
        require(
            self.embed_width is None or self.embed_width >= 1,
            f"model.embed_width = {self.embed_width}: expected null or a number ≥ 1",
        )
        require(0 <= self.dropout < 1, f"model.dropout = {self.dropout}: expected 0 ≤ p < 1")
        require(
            self.init_std is None or self.init_std > 0,
            f"model.init_std = {self.init_std}: expected a number > 0, or null for √(2/5d)",
        )

    def _check_heads(self) -> None:
        if self.head_dim is None and self.width % self.heads:
            near = min(_divisors(self.width), key=lambda n: abs(n - self.heads))
            raise ValueError(
                f"model.width = {self.width} is not divisible by model.heads = {self.heads}; "
                f"the nearest number of heads that divides it is {near}"
            )
        if self.heads % self.kv:
            near = min(_divisors(self.heads), key=lambda n: abs(n - self.kv))
            raise ValueError(
                f"model.heads = {self.heads} is not divisible by model.kv_heads = {self.kv}; "
                f"the nearest number of key/value heads that divides it is {near}"
            )
        require(
            self.positions != "rotary" or self.head_size % 2 == 0,
            f"head size {self.head_size} (model.width / model.heads) is odd: rotary positions turn "
            f"pairs; set model.head_dim={self.head_size + 1}, or model.positions=learned",
        )

    def _check_attention(self) -> None:
        for name in (
            "window", "attention_scale", "attention_softcap", "logit_softcap", "embed_length"
        ):  # fmt: skip
            value = getattr(self, name)
            require(value is None or value > 0, f"model.{name} = {value}: expected a number > 0")
        for name in ("global_every", "local_rope_theta"):
            value = getattr(self, name)
            require(value is None or value > 0, f"model.{name} = {value}: expected a number > 0")
            require(
                value is None or self.window is not None,
                f"model.{name} = {value} means nothing without model.window",
            )
        for name in ("rope_theta", "rope_divisors", "rope_factor", "rope_dim", "local_rope_theta"):
            value = getattr(self, name)
            require(
                self.positions == "rotary" or value == getattr(ModelConfig, name),
                f"model.{name} = {value} means nothing without model.positions=rotary",
            )
        require(self.causal or self.window is None, "model.window needs model.causal=true")
        turned = self.head_size if self.rope_dim is None else self.rope_dim
        require(
            (turned % 2 == 0 and 2 <= turned <= self.head_size) or self.positions != "rotary",
            f"model.rope_dim = {turned}: expected an even number, 2 to the head size, "
            f"{self.head_size}",
        )
        pairs = turned // 2
        require(
            len(self.rope_divisors) in (0, pairs),
            f"model.rope_divisors has {len(self.rope_divisors)} values: expected none or {pairs}, "
            "half of what turns of a head",
        )

    def check_norm(self, norm: NormConfig) -> None:
        """Raise `ValueError` for a setting of the embedding that a norm type leaves without effect.

        Where every row of it has one length, nothing is left of a constant factor.
        """
        own = getattr(norm, "embed_length", None)
        require(
            own is None or self.embed_length is None,
            f"norm.embed_length = {own} means nothing beside model.embed_length = "
            f"{self.embed_length}: expected one of the two",
        )
        length = self.embed_length or around(norm, self.width, 2 * self.layers).embed_length
        require(
            length is None or self.embed_factor == 1,
            f"model.embed_factor = {self.embed_factor} means nothing where every row of the "
            f"embedding gets the length {length}: set model.embed_length instead",
        )

    def local(self, layer: int) -> bool:
        """Whether block `layer` (from 0) attends to the window only."""
        if self.window is None:
            return False
        return self.global_every is None or (layer + 1) % self.global_every != 0

    @property
    def kv(self) -> int:
        """Key/value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """Elements of one head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def std(self) -> float:
        """Standard deviation of initial weights: √(2/5d), 0.023 at GPT-2's width of 768.

        SmallInit (Nguyen and Salazar 2019, arXiv:1910.05895), here for every matrix. A fixed 0.02
        starves a narrow model that no norm scales up: DyT at d = 128 sat at the unigram loss for
        500 steps (LOG.md).
        """
        return math.sqrt(0.4 / self.width) if self.init_std is None else self.init_std

    @property
    def hidden_size(self) -> int:
        """Elements inside the MLP; a gated one gets 8/3·width, up to a multiple of 8 (Llama)."""
        if self.hidden is not None:
            return self.hidden
        return -(-8 * self.width // 24) * 8 if self.gated else 4 * self.width

    @property
    def divided_sizes(self) -> dict[str, int]:
        """What devices that share a model divide: each field and its number."""
        return {
            "model.heads": self.heads,
            "model.kv_heads": self.kv,
            "model.hidden": self.hidden_size,
        }


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]
