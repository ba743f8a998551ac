"""The groups of a record's fields.

No name is in two groups, so that a table can have all of them side by side (`Record.flat`). What a
model that was not evaluated can't have is None.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelInfo:
    """Which model it is, down to its weights.

    Args:
        name: of a run its directory's, of a pretrained model its registered one; "(TRANSFORM)"
            after it.
        norm: the type of its norms.
        placement: of its norms.
        transform: what was done to it before it was read.
        note: what must be said beside its name: "step 0 of 200, unfinished".
        weights_sha256: of the weights as they were evaluated.
        parameters: how many it has.
        config: its shape, as `normlab.model.ModelConfig` has it.
        norm_config: as `normlab.norms.NormConfig` has it.
        placement_config: as `normlab.model.PlacementConfig` has it.
        seed: that it was trained with.
        facts: what is known of where it comes from: source, hashes of files; of a run also its
            config, step, state and provenance.
    """

    name: str
    norm: str | None = None
    placement: str | None = None
    transform: str = "none"
    note: str | None = None
    weights_sha256: str | None = None
    parameters: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    norm_config: dict[str, Any] = field(default_factory=dict)
    placement_config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TextInfo:
    """The text, and how it was read.

    Args:
        protocol: by its registered name.
        protocol_version: that of its definition.
        reported: the field of `Result` that the protocol reports.
        window: length in tokens.
        max_windows: so many were asked for, the first; None: all.
        windows: so many were read.
        tokens_scored: in all windows.
        words: that begin in what was scored.
        bytes: of what was scored, in UTF-8.
        dataset: by its registered name.
        dataset_title: as tables name it.
        dataset_revision: of its files.
        split: train, valid or test.
        sha256: of the split's text.
        tokenizer: by name.
        tokenizer_hash: of all that it depends on.
    """

    protocol: str | None = None
    protocol_version: int | None = None
    reported: str = "perplexity"
    window: int | None = None
    max_windows: int | None = None
    windows: int | None = None
    tokens_scored: int | None = None
    words: int | None = None
    bytes: int | None = None
    dataset: str | None = None
    dataset_title: str | None = None
    dataset_revision: str | None = None
    split: str | None = None
    sha256: str | None = None
    tokenizer: str | None = None
    tokenizer_hash: str | None = None


@dataclass(frozen=True)
class Result:
    """What came out. NLL is in nats.

    Args:
        perplexity: of a token, exp(sum_nll / tokens_scored).
        sum_nll: over all tokens scored.
        word_perplexity: exp(sum_nll / words).
        byte_perplexity: exp(sum_nll / bytes).
        bits_per_byte: sum_nll / bytes in bits.
        nonfinite_windows: windows whose NLL is not finite.
        window_nll: [windows], the sum of NLL of each.
        window_tokens: [windows], tokens scored in each.
        window_words: [windows], words that begin in what was scored of each.
        seconds: that it took; None where it shared its pass with others.
        tokens_per_second: tokens scored in a second.
        token_nll_file: each token's NLL, in a file beside the records, where it was asked for.
    """

    perplexity: float | None = None
    sum_nll: float | None = None
    word_perplexity: float | None = None
    byte_perplexity: float | None = None
    bits_per_byte: float | None = None
    nonfinite_windows: int | None = None
    window_nll: list[float] = field(default_factory=list)
    window_tokens: list[int] = field(default_factory=list)
    window_words: list[int] = field(default_factory=list)
    seconds: float | None = None
    tokens_per_second: float | None = None
    token_nll_file: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Differences to fp32 on the same windows; from `token_delta_mean` on where it was asked for.

    After a transform fp32 is that of the model as it was before.

    Args:
        delta: perplexity less that of fp32.
        delta_stderr: its paired standard error over windows.
        word_delta: the same of word perplexity.
        word_delta_stderr: its paired standard error over windows.
        token_delta_mean: mean |ΔNLL| of a scored token, in nats.
        token_delta_max: the largest, in nats.
        token_delta_max_at: [2], its window and position (of the input), from 0.
        top1_agreement: share of scored tokens with the same likeliest next token.
        kl_mean: KL(fp32 ‖ this) of the next token's distribution, in nats.
        kl_max: the largest, in nats.
    """

    delta: float | None = None
    delta_stderr: float | None = None
    word_delta: float | None = None
    word_delta_stderr: float | None = None
    token_delta_mean: float | None = None
    token_delta_max: float | None = None
    token_delta_max_at: list[int] | None = None
    top1_agreement: float | None = None
    kl_mean: float | None = None
    kl_max: float | None = None


@dataclass(frozen=True)
class Ranges:
    """What the norms saw, all sites together and each.

    Args:
        rows: rows of all norms.
        overflowed_rows: of them, with a sum that is not finite.
        underflowed_rows: whose sum is below the format's smallest normal.
        zero_rows: those of them whose sum is zero.
        precision_loss_rows: on which underflow may cost more than one rounding.
        underflow_error_rows: of them, whose exact sum is below the smallest normal.
        outside_elements: elements of norms' inputs beyond the largest value of the format that
            the column holds them in.
        sites: by site a `normlab.evaluation.range_stats.RangeStats`, with every stage's of a
            datapath, and its `scale` (a number, or [heads, 1]) where a rule gave it one.
    """

    rows: int | None = None
    overflowed_rows: int | None = None
    underflowed_rows: int | None = None
    zero_rows: int | None = None
    precision_loss_rows: int | None = None
    underflow_error_rows: int | None = None
    outside_elements: int | None = None
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """What the numbers depend on beside the model and the text.

    Args:
        order: the order of summation, the default written out.
        default_order: that of precisions which name none.
        datapath: every stage of it, where the precision is the name of one.
        activations: the format of weights and of all that a runtime stores; None: float32.
        scale_rule: by its registered name.
        scales_sha256: of the scales that it gave.
        calibration: the text that a rule looked at.
        batch: windows that run together.
        environment: code, packages, device, mesh.
    """

    order: str | None = None
    default_order: str | None = None
    datapath: dict[str, Any] | None = None
    activations: str | None = None
    scale_rule: str | None = None
    scales_sha256: str | None = None
    calibration: dict[str, Any] | None = None
    batch: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
