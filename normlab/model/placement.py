"""Where norms sit: the placement table."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from normlab.config import field, require
from normlab.model.config import ModelConfig
from normlab.norms import NormConfig
from normlab.registry import MethodCard, Registry, choice

SUBLAYERS = ("attention", "mlp")
INSIDE = ("norm_in", "norm_out", "post_norm", "sub_norm", "norm_qk", "norm_v")
AROUND = ("norm_embed", "norm_final")
SITES = (*INSIDE, *AROUND)
"""Kinds of site: those of a sublayer, and those before and after the blocks."""


@dataclass(frozen=True)
class ResidualConfig:
    """How a sublayer F sits in the stream: x ← skip(α·x + out(F(c·in(x)))).

    Args:
        sites: the kinds of site that hold a norm; the others pass their rows on.
        alpha: α, a constant factor on the stream around the branch.
        scale_in: c, a constant factor on the rows that leave norm_in.
        gain: factor on the initial weights of values, output map and MLP, queries and keys left
            alone. With None the two output maps start smaller by √(2·layers), as in GPT-2.
        head_scales: a learned factor on each head, initially 1, before the output map.
        full_qk: the norms of queries and keys take all heads as one row.
        rotated_qk: they stand after rotary positions, not before.
        parallel: F reads the rows that entered the block: x ← skip(α·x + out(F(c·in(x_block)))).
    """

    sites: frozenset[str] = frozenset()
    alpha: float = 1.0
    scale_in: float = 1.0
    gain: float | None = None
    head_scales: bool = False
    full_qk: bool = False
    rotated_qk: bool = False
    parallel: bool = False

    def __post_init__(self) -> None:
        for site in self.sites:
            choice("site of a sublayer", site, INSIDE)
        require(self.alpha > 0, f"alpha = {self.alpha}: expected a factor > 0 on the stream")
        require(
            self.scale_in == 1 or "norm_in" in self.sites,
            f"scale_in = {self.scale_in} scales what leaves norm_in: expected norm_in among the "
            f"sites, got {', '.join(sorted(self.sites)) or 'none'}",
        )

    def std(self, weight: str, config: ModelConfig) -> float:
        """Standard deviation of the initial weights of one map (query, value, out, gate, …)."""
        if self.gain is None:
            outputs = weight in ("out", "down")
            return config.std / math.sqrt(2 * config.layers) if outputs else config.std
        return config.std * (1.0 if weight in ("query", "key") else self.gain)


class At(NamedTuple):
    """The sublayer that a row is asked about: ℓ = `layer` counts from 1, as in the papers."""

    sublayer: str
    layer: int
    layers: int
    post_share: float


@dataclass(frozen=True)
class Placement:
    """One row of the table: the residual of each sublayer, and where the row comes from."""

    wire: Callable[[At], ResidualConfig]
    card: MethodCard


placements: Registry[Placement] = Registry("placement")
"""Every placement by name."""


@dataclass(frozen=True)
class PlacementConfig:
    """Which row of the table, and the sites that any row may add."""

    type: str = field("pre", "placement, a registered name (set by placement=NAME)")
    norm_embed: bool = field(False, "a norm on the embedding too (optional in Peri-LN)")
    norm_qk: bool = field(False, "a norm on each head's queries and keys too, before positions")
    norm_qk_full: bool = field(False, "that norm takes all heads as one row (OLMo 2)")
    norm_qk_rotated: bool = field(False, "that norm stands after rotary positions")
    norm_v: bool = field(False, "a norm on each head's values too")
    post_share: float | None = field(
        None,
        "mix-ln: share of the blocks, rounded down, that are post-norm; null: 0.25, one at least",
    )

    def __post_init__(self) -> None:
        choice("placement", self.type, placements)
        there = self.residual("attention", 0, 1).sites
        for name in ("norm_qk_full", "norm_qk_rotated"):
            require(
                "norm_qk" in there or not getattr(self, name),
                f"placement.{name} = True means nothing without placement.norm_qk=true",
            )
        require(
            not (self.norm_qk_full and "norm_v" in there),
            f"placement.norm_qk_full = True contradicts placement={self.type}, which normalizes "
            "queries, keys and values head by head; leave it at false",
        )
        share = self.post_share
        require(
            share is None or self.type == "mix-ln",
            f"placement.post_share = {share} means nothing to placement={self.type}; "
            "set it with placement=mix-ln",
        )
        require(
            share is None or 0 <= share <= 1,
            f"placement.post_share = {share}: expected a share of the blocks, 0 … 1",
        )

    def residual(self, sublayer: str, layer: int, layers: int) -> ResidualConfig:
        """How attention or MLP of block `layer` (from 0) sits in a model of so many layers."""
        share = max(0.25, 1 / layers) if self.post_share is None else self.post_share
        residual = placements[self.type].wire(At(sublayer, layer + 1, layers, share))
        if sublayer != "attention":
            return residual
        added = {site for site in ("norm_qk", "norm_v") if getattr(self, site)}
        how = {"full_qk": self.norm_qk_full, "rotated_qk": self.norm_qk_rotated}
        return replace(residual, sites=residual.sites | added, **how)

    def check_norm(self, norm: NormConfig, layers: int) -> None:
        """Raise `ValueError` for a norm that this placement can't work with.

        A factor α > 1 on the stream of each sublayer needs a norm after the sum to take it back.
        BHyT's estimate of a sum x + F(N(x)) holds for that sum. TaperNorm's anchor holds the rows
        before a final norm.
        """
        require(
            norm.type != "bhyt-estimated" or self.type == "pre",
            f"norm=bhyt-estimated estimates what attention adds to the stream as it does at "
            f"placement=pre, not at {self.type}; expected placement=pre, or norm=bhyt",
        )
        alpha = self.residual("mlp", 0, layers).alpha
        require(
            norm.type != "none" or alpha == 1,
            f"placement={self.type} with norm=none would grow the stream {alpha:.4g} times in each "
            "of its sublayers; take another norm, or placement=pre",
        )
        anchor = getattr(norm, "anchor", None)
        require(
            anchor is None or "norm_final" in self.around(layers),
            f"norm.anchor = {anchor} means nothing to placement={self.type}, which has no norm "
            "before the head; expected null, or placement=pre",
        )

    def around(self, layers: int) -> frozenset[str]:
        """The sites outside the blocks; a stream that the last block leaves normed needs none."""
        normed = "post_norm" in self.residual("mlp", layers - 1, layers).sites
        found = {"norm_embed": self.norm_embed, "norm_final": not normed}
        return frozenset(site for site, there in found.items() if there)

    def sites(self, layers: int) -> frozenset[str]:
        """Every kind of site that holds a norm somewhere in a model of so many layers."""
        blocks = [self.residual(s, i, layers).sites for s in SUBLAYERS for i in range(layers)]
        return self.around(layers).union(*blocks)


def _at(*sites: str, **factors: float | bool) -> ResidualConfig:
    return ResidualConfig(frozenset(sites), **factors)  # type: ignore[arg-type]


def _row(name: str, wire: Callable[[At], ResidualConfig], card: MethodCard) -> None:
    placements.register(name)(Placement(wire, card))


def _tests(name: str) -> str:
    return f"tests/model/test_placement_rows.py::{name}"


_PERI = ("norm_in", "norm_out")

_row(
    "pre",
    lambda at: _at("norm_in"),
    MethodCard(
        title="Pre-LN",
        formula="x + F(N(x)); a final norm",
        source="Xiong et al. 2020, arXiv:2002.04745, Fig. 1b",
        property="the branch sees the normalized stream, the stream itself is never normalized",
        test=_tests("test_every_row_is_its_formula"),
    ),
)
_row(
    "post",
    lambda at: _at("post_norm"),
    MethodCard(
        title="Post-LN",
        formula="N(x + F(x)); no final norm",
        source="Vaswani et al. 2017, arXiv:1706.03762, section 3.1",
        property="every sublayer leaves the stream with RMS 1 (at γ = 1)",
        test=_tests("test_post_and_keel_leave_the_stream_normed"),
    ),
)
_row(
    "peri",
    lambda at: _at(*_PERI),
    MethodCard(
        title="Peri-LN",
        formula="x + N(F(N(x))); a final norm; N on the embedding by norm_embed",
        source="Kim et al. 2025, arXiv:2502.02732, section unconfirmed",
        property="at the start E‖x_ℓ‖²/d = E‖x₀‖²/d + 2ℓ, whatever the size of the branches",
        test=_tests("test_peri_variance_grows_by_one_a_sublayer"),
    ),
)
_row(
    "parallel",
    lambda at: _at("norm_in", parallel=at.sublayer == "mlp"),
    MethodCard(
        title="Parallel residual (GPT-J, GPT-NeoX)",
        formula="x + A(N(x)) + M(N'(x)); a final norm",
        source="Black et al. 2022, arXiv:2204.06745, section 2.1; there N and N' are two norms",
        property="the MLP doesn't see what attention adds: with A = 0 it is Pre-LN, bit for bit",
        test=_tests("test_parallel_without_attention_is_pre"),
    ),
)
_row(
    "reordered",
    lambda at: _at("norm_out"),
    MethodCard(
        title="Reordered norm (OLMo 2)",
        formula="x + N(F(x)); a final norm; there with norm_qk over all heads (norm_qk_full)",
        source="OLMo 2 team 2025, arXiv:2501.00656, section 3.2",
        property="a block's output does not see the size of its output maps; its input is raw",
        test=_tests("test_under_output_norms_the_size_of_a_branch_is_unseen"),
    ),
)
_row(
    "sandwich",
    lambda at: _at(*_PERI),
    MethodCard(
        title="Sandwich norm (Gemma 2 and 3)",
        formula="x + N(F(N(x))); a final norm",
        source="Gemma 2, arXiv:2408.00118; google-deepmind/gemma, gm/nn/_modules.py",
        property="the network of Peri-LN without a norm on the embedding, bit for bit",
        test=_tests("test_sandwich_is_peri_bit_for_bit"),
    ),
)
_row(
    "deepnorm",
    lambda at: _at("post_norm", alpha=(2 * at.layers) ** 0.25, gain=(8 * at.layers) ** -0.25),
    MethodCard(
        title="DeepNorm",
        formula="N(αx + F(x)), α = (2M)^¼; initial values, output map and MLP times β = (8M)^−¼",
        source="Wang et al. 2022, arXiv:2203.00555, Fig. 2 (decoder-only); torchscale decoder.py",
        property="12 layers give α = 2.2134 and β = 0.3195; α = β = 1 is Post-LN",
        test="tests/model/test_placement.py::test_the_constants_of_twelve_layers",
    ),
)
_row(
    "sub-ln",
    lambda at: _at("norm_in", "sub_norm", gain=math.sqrt(math.log(2 * at.layers))),
    MethodCard(
        title="Sub-LN (Magneto)",
        formula="x + N(F'(N(x)))W: N before each output map; initial gain √ln 2N as in DeepNorm",
        source="Wang et al. 2022, arXiv:2210.06423; torchscale decoder.py (subln)",
        property="the output does not see the size of W_v, nor of W₁ under ReLU; 12 layers: 1.783",
        test=_tests("test_sub_ln_does_not_see_the_size_of_values"),
    ),
)
_row(
    "normformer",
    lambda at: (
        _at("norm_in", "norm_out", head_scales=True)
        if at.sublayer == "attention"
        else _at("norm_in", "sub_norm")
    ),
    MethodCard(
        title="NormFormer",
        formula="x + N(Concat(γ_i h_i)W_o), heads h_i of N(x); x + N(φ(N(x)W₁))W₂",
        source="Shleifer et al. 2021, arXiv:2110.09456, equation numbers unconfirmed; no ResScale. "
        "γ_i stands before W_o, as in the paper; in fairseq's code after it, on its output",
        property="a head scale of zero removes that head; without its three extras it is Pre-LN",
        test=_tests("test_a_head_scale_of_zero_removes_the_head"),
    ),
)
_row(
    "lns",
    lambda at: _at("norm_in", scale_in=at.layer**-0.5, gain=1.0),
    MethodCard(
        title="LayerNorm Scaling",
        formula="x + F(N(x)/√ℓ) in block ℓ; a final norm, unscaled; no 1/√(2L) at the start",
        source="Sun et al. 2025, arXiv:2502.05795, section unconfirmed; their modeling_llama.py",
        property="Pre-LN whose γ of block ℓ is divided by √ℓ",
        test=_tests("test_lns_is_pre_with_smaller_gains"),
    ),
)
_row(
    "mix-ln",
    lambda at: _at(
        "post_norm" if at.layer <= math.floor(at.post_share * at.layers + 1e-9) else "norm_in"
    ),
    MethodCard(
        title="Mix-LN",
        formula="Post-LN in the first ⌊αL⌋ blocks, Pre-LN in the rest; α is post_share, left alone "
        "0.25 and one block at least",
        source="Li et al. 2024, arXiv:2412.13795, section 3; their POST_NUM in modeling_llama",
        property="α = 0 is Pre-LN, α = 1 is Post-LN (rounding: an α given under 1/L is Pre-LN too)",
        test=_tests("test_mix_ln_ends_in_pre_and_post"),
    ),
)


def _hybrid(at: At) -> ResidualConfig:
    """Z = N(Y), X⁺ = Z + F(Z): the norm of the MLP's stream stands after attention's sum."""
    return _at("norm_qk", "norm_v", "post_norm") if at.sublayer == "attention" else _at()


def _hybrid_star(at: At) -> ResidualConfig:
    if at.layer > 1:
        return _hybrid(at)
    return _at("norm_in", "norm_qk", "norm_v") if at.sublayer == "attention" else _at("norm_in")


_row(
    "hybridnorm",
    _hybrid,
    MethodCard(
        title="HybridNorm",
        formula="Y = x + A(N(Q), N(K), N(V)) per head; Z = N(Y); Z + F(Z); a final norm",
        source="Zhuo et al. 2025, arXiv:2503.04598, section 3; BryceZhuo/HybridNorm, model.py",
        property="attention does not see the size of W_q, W_k, W_v; the MLP's stream has RMS 1",
        test=_tests("test_hybridnorm_does_not_see_the_size_of_q_k_v"),
    ),
)
_row(
    "hybridnorm-star",
    _hybrid_star,
    MethodCard(
        title="HybridNorm*",
        formula="HybridNorm whose first block has a norm before attention and x + F(N(x))",
        source="Zhuo et al. 2025, arXiv:2503.04598, section 3; their README's special config",
        property="its first block is Pre-LN with norms on q, k, v; the others are HybridNorm's",
        test=_tests("test_hybridnorm_star_differs_in_its_first_block"),
    ),
)
_row(
    "keel",
    lambda at: _at("norm_in", "post_norm", alpha=2.0 * at.layers),
    MethodCard(
        title="KEEL",
        formula="N(αx + F(N(x))), α the number of sublayers, 2L",
        source="Chen and Wei 2026, arXiv:2601.19895; unconfirmed: read in summaries and ports only",
        property="with F = 0 a sublayer is N(x); each leaves the stream with RMS 1",
        test=_tests("test_keel_without_branches_is_a_norm"),
    ),
)
