"""What is to be evaluated: models, known by their papers before their weights are loaded."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from normlab.config import build, require
from normlab.data import DataConfig, Tokenizer, load_tokenizer
from normlab.data.config import TextConfig
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.memory import check_fits
from normlab.evaluation.protocols import Protocol, protocols
from normlab.model import ModelConfig
from normlab.model.language_model import LanguageModel
from normlab.norms import NormConfig, all_norms
from normlab.norms.sites import matching
from normlab.parallel.distributed import HostsConfig
from normlab.parallel.mesh import MeshConfig
from normlab.registry import choice
from normlab.results.record import GOOD, OK
from normlab.results.settings import flattened
from normlab.results.versus import baseline_names
from normlab.runs import sources
from normlab.runs.run import Run, is_run, load, open_run, steps
from normlab.transforms import NOTHING, Chain, parse

UNREADABLE = "unreadable: "
"""How the status begins of a run whose files can't be used."""
TORCH = "torch:"
"""How a model that PyTorch computes is named."""
PRETRAINED_DATA = DataConfig(corpus="auto-raw")
"""What a pretrained model reads where nothing is asked for."""


@dataclass(frozen=True)
class EvalTarget:
    """A model to be evaluated.

    Args:
        name: its row's name.
        status: "ok", or why there is nothing to evaluate.
        data: the text to be read: the one asked for, a run's own, or the default.
        max_length: the longest sequence that it reads.
        load: loads it.
        tokenizer: loads its tokenizer only; None where a run has none that can be read.
        config: a run's config.yaml; empty for a pretrained model, and where it can't be read.
        trained: a run's provenance.json: the text that it was trained on, among others.
        transform: what is done to the model before it is evaluated.
    """

    name: str
    status: str
    data: DataConfig
    max_length: int
    load: Callable[[], LanguageModel]
    tokenizer: Callable[[], Tokenizer] | None
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    trained: dict[str, Any] = dataclasses.field(default_factory=dict)
    transform: Chain = parse(NOTHING)

    def transformed(self, chain: Chain) -> "EvalTarget":
        """The same model after a chain of transforms: a row of its own, of another name."""
        name = f"{self.name} ({chain})" if chain.steps else self.name
        return replace(self, name=name, transform=chain)

    @property
    def untransformed(self) -> "EvalTarget":
        """The model as it is loaded, to whose fp32 the Δ of all its transforms refers."""
        plain = self.name.removesuffix(f" ({self.transform})")
        return replace(self, name=plain, transform=parse(NOTHING)) if self.transform.steps else self

    def protocol(self, asked: str | None) -> Protocol:
        """The protocol asked for, or its own."""
        word_level = self.config.get("data", {}).get("tokenizer") == "word"
        return protocols[asked or ("word" if word_level else "window")]

    def window(self, protocol: Protocol, asked: int | None) -> int:
        """L, checked against what it can read."""
        window = asked or protocol.default_window(self.max_length, self.config.get("window"))
        protocol.check_window(window, self.max_length)
        return window


def targets(config: EvaluateConfig) -> list[EvalTarget]:
    """All models that were asked for, each in all its transforms, protocols and windows checked.

    Raises:
        FileNotFoundError: no such file or directory, or no run in it.
        ValueError: a window or a protocol that doesn't fit one of them, or no run can be read.
    """
    source = config.source
    if source == "run":
        found = _rows(open_run(str(config.run)), config)
    elif source == "runs":
        found = [row for run in _runs(Path(str(config.runs))) for row in _rows(run, config)]
        _refuse_unless_one_is_readable(found, config)
        if config.compare_to is not None:
            methods = baseline_names(flattened(t.config) for t in found if t.config)
            choice("method to compare with: compare_to", config.compare_to, methods)
    else:
        found = [_pretrained(str(config.pretrained), config)]
    for target in found:
        if target.tokenizer is None:  # a row that says why; nothing of it is read
            continue
        protocol = target.protocol(config.protocol)
        target.window(protocol, config.window)
        if protocol.words_only:
            protocol.check_tokenizer(target.tokenizer())
    chains = dict.fromkeys(str(parse(text)) for text in config.transform)
    return [target.transformed(parse(text)) for target in found for text in chains]


def _refuse_unless_one_is_readable(found: list[EvalTarget], config: EvaluateConfig) -> None:
    """Where no run can be read there is no table, and an earlier one stays."""
    reasons = [t.status.removeprefix(UNREADABLE) for t in found if t.status.startswith(UNREADABLE)]
    require(
        len(reasons) < len(found),
        f"runs={config.runs}: none of {len(found)} runs can be read; the first: "
        f"{min(reasons, default='')}",
    )


def _runs(directory: Path) -> list[Run]:
    if not directory.is_dir():
        holding = {path.parent.parent for path in directory.parent.glob("*/*/config.yaml")}
        near = sorted(map(str, holding))[:3]
        raise FileNotFoundError(
            f"runs={directory}: no such directory."
            + f" Runs are in {', '.join(near)}." * bool(near)
        )
    found = [Run(path) for path in sorted(directory.iterdir()) if is_run(path)]
    if not found:
        raise FileNotFoundError(f"runs={directory} holds no run directory{_elsewhere(directory)}")
    return found


def _elsewhere(directory: Path) -> str:
    """Where there are runs, if not in a directory: it is one itself, or those in it hold some."""
    if is_run(directory):
        return f", it is one: say run={directory}"
    below = sorted({path.parent for path in directory.glob("*/*") if is_run(path)})
    if below:
        return f"; below it: {', '.join(f'runs={path}' for path in below)}"
    return " (one has a config.yaml, which `python -m train` writes); for a single run say run=DIR"


def _run(run: Run, config: EvaluateConfig, step: int | None = None) -> EvalTarget:
    """A run; of many, one whose papers can't be read is a row with what there is of them.

    Of a checkpoint that is named by its step the row's name says so.
    """
    name = run.directory.name if step is None else f"{run.directory.name} (step {step})"
    row = EvalTarget(name, OK, DataConfig(), 0, lambda: load(run.directory, step), None)
    try:
        row = replace(row, config=_config(run))
        row = replace(row, status=_status(run, config))
        if row.status == OK:
            changed = sources.check(run, config.allow_changed_source)
            row = replace(row, load=lambda: _load(run, changed, step))
        model = build(ModelConfig, row.config["model"], "model.")
        build(NormConfig, row.config["norm"], "norm.")  # its type may have left since
        data = _asked(build(DataConfig, row.config["data"], "data."), config)
        row = replace(row, data=data, max_length=model.max_length)
        row = replace(row, trained=run.read("provenance.json"))
        if run["tokenizer"].is_dir():
            tokenizer = load_tokenizer(run["tokenizer"])
            row = replace(row, tokenizer=lambda: tokenizer)
    except (ValueError, FileNotFoundError) as error:
        if config.run is not None:
            raise
        return replace(row, status=f"{UNREADABLE}{error}" if row.status == OK else row.status)
    if row.status == OK and not model.causal:
        said = "an encoder, which has no perplexity"
        require(config.run is None, f"run={config.run} is {said}")
        return replace(row, status=said, tokenizer=None)
    if row.status == OK:
        config.mesh.check_sizes(model.divided_sizes)
    return row


def _load(run: Run, changed: list[str], step: int | None) -> LanguageModel:
    lm = load(run.directory, step)
    told = {"changed_source": changed} if changed else {}
    return replace(lm, facts=lm.facts | told | ({"checkpoints": "all"} if step is not None else {}))


def _rows(run: Run, config: EvaluateConfig) -> list[EvalTarget]:
    """A run at its best checkpoint, or at each that is kept."""
    row = _run(run, config)
    if config.checkpoints == "best" or row.status != OK:
        return [row]
    return [_run(run, config, step) for step in steps(run)]


def _config(run: Run) -> dict[str, Any]:
    found = run.read("config.yaml") or {}
    missing = [n for n in ("model", "norm", "placement", "data", "seed") if n not in found]
    require(
        not missing,
        f"{run['config.yaml']} has no {', '.join(missing)}: expected all that `python -m train` "
        "writes",
    )
    return found


def _status(run: Run, config: EvaluateConfig) -> str:
    """Of many runs, those that haven't ended well are rows that say so; a single one is tried."""
    state = run.record.get("state", "unfinished")
    if config.run is not None or state in GOOD:
        return OK
    why = run.record.get("reason")
    return "unfinished" if state == "running" else f"{state}: {why}" if why else state


def _pretrained(spec: str, config: EvaluateConfig) -> EvalTarget:
    if spec.startswith(TORCH):
        return _torch(spec, config)
    from normlab.pretrained import describe  # reads formats that nothing else here needs

    found = describe(spec)
    if not found.configs.model.causal:
        raise ValueError(
            f"pretrained={spec} is an encoder, which has no perplexity: expected a decoder, such "
            "as smollm2-135m (an encoder's norms can be looked at through normlab.pretrained.load)"
        )
    config.mesh.check_sizes(found.configs.model.divided_sizes)
    for column in config.columns:  # a site that no norm has is refused before weights are read
        matching(column.keep_fp32, [norm.site.name for norm in all_norms(found.shape)])
    longest = found.configs.model.max_length
    data, load = _asked(PRETRAINED_DATA, config), partial(found.load, config.stream)
    target = EvalTarget(found.name, OK, data, longest, load, found.tokenizer)
    if config.mesh == MeshConfig():  # devices of a mesh share what there is
        window = target.window(target.protocol(config.protocol), config.window)
        check_fits(spec, found.shape, config, window)
    return target


def _torch(spec: str, config: EvaluateConfig) -> EvalTarget:
    """A model that PyTorch computes, of which only the norms are ours."""
    _refuse_unless_norms_only(spec, config)
    try:
        from normlab.torch_bridge import describe
    except ModuleNotFoundError as error:
        raise ValueError(
            f"pretrained={spec} needs {error.name}, which is not installed: "
            "pip install 'normlab[torch]'"
        ) from None
    found = describe(Path(spec.removeprefix(TORCH)).expanduser())
    data = _asked(PRETRAINED_DATA, config)
    return EvalTarget(found.name, OK, data, found.max_length, found.load, found.tokenizer)


def _refuse_unless_norms_only(spec: str, config: EvaluateConfig) -> None:
    """Refuse what asks more of a PyTorch model than other arithmetic in its norms."""
    chains = [text for text in config.transform if parse(text).steps]
    require(
        not chains,
        f"transform=[{','.join(chains)}]: of pretrained={spec} only the norms are computed here; "
        "expected transform=[none], or pretrained=hf:DIR, whose weights are read",
    )
    for column in config.columns:
        require(
            column.activations is None,
            f"precision {str(column)!r}: of pretrained={spec} only the norms are computed here; "
            "expected no activations, or pretrained=hf:DIR",
        )
    require(
        not config.stream,
        f"stream = True: pretrained={spec} is loaded by PyTorch; expected pretrained=hf:DIR",
    )
    require(
        config.mesh == MeshConfig() and config.hosts == HostsConfig(),
        f"pretrained={spec} runs on one device of one process; expected no mesh and no hosts",
    )


def _asked(own: DataConfig, config: EvaluateConfig) -> DataConfig:
    """The text asked for, else the model's own; where WikiText-2 lies may be said by itself."""
    asked = {f.name: getattr(config.data, f.name) for f in dataclasses.fields(TextConfig)}
    root = config.data.root or own.root
    return replace(own, **(asked if config.data.corpus else {}) | {"root": root})
