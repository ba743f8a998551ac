"""Everything that an evaluation is told."""

from dataclasses import dataclass, replace

from normlab.config import field, require
from normlab.data import SPLITS
from normlab.data.config import TextConfig
from normlab.evaluation.protocols import protocols
from normlab.parallel.distributed import HostsConfig
from normlab.parallel.mesh import MeshConfig
from normlab.registry import choice
from normlab.results.column import HALF, Column
from normlab.scaling import scale_rules
from normlab.transforms import NOTHING, check, transforms

REFERENCE = "fp32"
"""The column that Δ refers to; it is always run."""
SOURCES = ("run", "pretrained", "runs")


@dataclass(frozen=True)
class EvaluateConfig:
    """Which models, rewritten how, in which precisions, on which text, by which protocol."""

    run: str | None = field(None, "a run directory that `python -m train` wrote")
    pretrained: str | None = field(
        None,
        "a pretrained model: a registered name, hf:DIR (safetensors), gguf:FILE; or torch:DIR, of "
        "which PyTorch computes all but the norms",
    )
    runs: str | None = field(None, "a directory of run directories: each is a row of the table")
    checkpoints: str = field(
        "best",
        "of a run: best, by validation; or all, every one that is kept (train keep_every=N), each "
        "a row: when FP16 begins to do harm",
    )
    precision: tuple[str, ...] = field(
        ("fp32", "fp16", "fp16+slanc"),
        "columns of the table: in what norms' sums are made, each FORMAT[:ORDER][+RULE], such as "
        "[fp32,fp16:sequential,fp16:pairwise+random_tokens]; or DATAPATH[+RULE], every stage of a "
        "norm (`list datapaths`). RULE: static scales that inputs of "
        "norms are divided by; slanc is the paper's, random_tokens the one to use. fp32 is always "
        "run, for Δ refers to it",
    )
    activations: str | None = field(
        None,
        f"{' or '.join(HALF)}: round weights and everything that a half-precision runtime stores, "
        "in every column but fp32 (FORMAT@fp16 is one such column); null: float32 but for norms",
    )
    keep_fp32: tuple[str, ...] = field(
        (),
        "sites whose norm stays in float32 in every narrow column, by name or pattern, such as "
        "[norm_final,blocks.2.*] (FORMAT/SITE is one such column)",
    )
    transform: tuple[str, ...] = field(
        ("none",),
        "rows of the table, each a chain of rewrites of the model before it is read, such as "
        f"[none,fold,recentre+rescale:0.25]: {', '.join(transforms)}; or a norm type, which "
        "takes the place of the model's own; rescale:auto keeps the stream a factor of 4 from "
        "FP16's largest value",
    )
    data: TextConfig = field(
        TextConfig, "the text; unset: a run's own, auto-raw for a pretrained model"
    )
    split: str = field("test", f"which part of the text: {', '.join(SPLITS)}")
    protocol: str | None = field(
        None,
        f"{', '.join(protocols)}; null: word for a word-level model, else window",
    )
    window: int | None = field(
        None, "L, tokens of a window; null: the protocol's, or what a run was trained on"
    )
    max_windows: int | None = field(None, "read so many windows only, the first; null: all")
    batch: int | None = field(
        None, "windows in a batch; null: logits of at most 64 MiB on a CPU, 1 GiB elsewhere"
    )
    stream: bool = field(
        False,
        "of a pretrained model larger than memory: read its layers from disk one at a time, each "
        "time that a batch comes to one; the same numbers, bit for bit",
    )
    calibration_windows: int = field(8, "windows of validation text for rules that look at text")
    per_token: bool = field(False, "keep each scored token's NLL, in OUT/tokens")
    compare: bool = field(
        False,
        "compare each token with fp32: |ΔNLL|, KL, top-1 agreement; the columns that are missing "
        "run side by side and are written together",
    )
    imports: tuple[str, ...] = field(
        (), "your own files, [my_norms.py]: what they register (norms, datapaths, rules) is known"
    )
    allow_changed_source: bool = field(
        False, "go on where the norm's source or an imported file is another than it was"
    )
    mesh: MeshConfig = field(MeshConfig, "devices, and what is divided over them")
    hosts: HostsConfig = field(HostsConfig, "processes that evaluate together")
    compare_to: str | None = field(
        None,
        "with runs=DIR: what all others are compared with, rmsnorm-pre, or at each placement its "
        "own, rmsnorm: differences paired by seed, intervals, p after Holm",
    )
    out: str = field("results", "directory for table.md, table.csv, table.tex and records.jsonl")

    def __post_init__(self) -> None:
        self._check_source()
        require(len(self.precision) > 0, "precision = []: expected at least one, such as [fp32]")
        if self.activations is not None:
            choice("activations", self.activations, HALF)
        for asked in self.columns:
            check_rule(asked)
        self._check_stream()
        require(len(self.transform) > 0, "transform = []: expected at least one, such as [none]")
        for text in self.transform:
            check(text)
        choice("split", self.split, SPLITS)
        choice("checkpoints", self.checkpoints, ("best", "all"))
        if self.protocol is not None:
            choice("protocol", self.protocol, protocols)
        for name in ("max_windows", "batch", "calibration_windows"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} = {value}: expected a whole number ≥ 1")
        require(
            self.window is None or self.window >= 2,
            f"window = {self.window}: expected at least 2 tokens (one told, one asked)",
        )

    @property
    def columns(self) -> list[Column]:
        """Those of `precision`, each once; narrow ones with the activations and sites asked for."""
        asked = (Column.parse(text) for text in self.precision)
        return list(dict.fromkeys(self._held(column) for column in asked))

    def _held(self, column: Column) -> Column:
        if str(column) == REFERENCE:
            return column
        held = replace(column, activations=column.activations or self.activations)
        return replace(held, keep_fp32=held.keep_fp32 or tuple(dict.fromkeys(self.keep_fp32)))

    def _check_source(self) -> None:
        require(
            self.compare_to is None or self.runs is not None,
            f"compare_to={self.compare_to}: expected with runs=DIR, which holds several methods",
        )
        given = [name for name in SOURCES if getattr(self, name) is not None]
        # None at all is the schema's own default; the application refuses it (`source`).
        require(
            len(given) <= 1,
            f"{' and '.join(f'{n}={getattr(self, n)}' for n in given)}: expected exactly one of "
            f"{', '.join(SOURCES)}",
        )

    def _check_stream(self) -> None:
        if not self.stream:
            return
        require(
            self.pretrained is not None,
            f"stream = True with run={self.run} and runs={self.runs}: expected pretrained=, whose "
            "layers can be read one at a time",
        )
        rewrites = [text for text in self.transform if text != NOTHING]
        require(
            not rewrites,
            f"stream = True with transform=[{','.join(rewrites)}]: a rewrite reads and holds the "
            "whole model; expected transform=[none]",
        )

    @property
    def source(self) -> str:
        """The one of `SOURCES` that was given.

        Raises:
            ValueError: none was.
        """
        given = [name for name in SOURCES if getattr(self, name) is not None]
        require(
            len(given) == 1,
            "nothing to evaluate: expected exactly one of run=DIR, runs=DIR, pretrained=NAME (or "
            "pretrained=hf:DIR, pretrained=gguf:FILE, pretrained=torch:DIR)",
        )
        return given[0]


def check_rule(column: Column) -> None:
    """Raise `UnknownNameError` for a scale rule that nobody registered."""
    if column.rule is not None:
        scale_rules[column.rule]
