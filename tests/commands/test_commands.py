"""The command line: what composes, what is refused, what help explains."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from evaluate.__main__ import without_model
from evaluate.config import EvaluateConfig
from normlab import cli
from normlab.config import build, describe
from normlab.norms import Norm, norms
from train.config import TrainConfig

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig}


def composed(app, *overrides):
    """What `python -m app overrides` hands to its main."""
    cli.register(app, SCHEMAS[app])
    with initialize_config_dir(version_base="1.3", config_dir=str(cli.CONFIGS)):
        values = compose(app, list(overrides))
    return build(SCHEMAS[app], OmegaConf.to_container(values, resolve=True))


def run(capsys, monkeypatch, app, *arguments):
    """(exit status, what was printed) of the command line with a main that does nothing."""
    monkeypatch.setattr(sys, "argv", [app, *arguments])
    status = 0
    try:
        cli.launch(app, SCHEMAS[app], lambda config, asked: print(config))
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    return status, printed.out + printed.err


FILES = sorted(p.relative_to(cli.CONFIGS) for p in cli.CONFIGS.glob("*/*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes(file):
    config = composed("train", f"{file.parent}={file.stem}")
    assert composed("train", f"{file.parent}={file.stem}") == config
    if file.parent.name in ("model", "norm", "placement", "data"):
        chosen = yaml.safe_load((cli.CONFIGS / file).read_text())
        chosen.pop("defaults", None)
        part = getattr(config, file.parent.name)
        assert chosen == {key: getattr(part, key) for key in chosen}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_opens_with_a_line_of_what_it_is(file):
    assert (cli.CONFIGS / file).read_text().startswith("# ")


def test_the_defaults_are_the_dataclasses():
    small = composed("train", "model=small")
    assert small.optimizer == TrainConfig().optimizer
    assert small.norm == norms["rmsnorm"].Config()


@pytest.mark.parametrize("name", norms)
def test_every_norm_that_can_be_trained_can_be_asked_for(name):
    if norms[name].differentiable:
        assert composed("train", f"norm={name}").norm == norms[name].Config()
    else:
        with pytest.raises(ValueError, match=rf"norm={name} rounds.*transform=\[{name}\]"):
            composed("train", f"norm={name}")


def test_a_file_changes_what_it_says_and_nothing_else():
    config = composed("train", "norm=layernorm-nobias")
    assert config.norm == norms["layernorm"].Config(bias=False)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("norm=rmsnrom", "unknown norm 'rmsnrom'. Did you mean 'rmsnorm'"),
        ("placement=perry", "unknown placement 'perry'. Did you mean 'peri'"),
        ("norm.epz=1", "unknown key of norm 'epz'. Did you mean 'eps'"),
        ("model.width.x=1", "model.width is one value and has no keys; expected model.width=VALUE"),
        ("stepz=1", "unknown key 'stepz'. Did you mean 'steps'"),
        ("lr=1e-3", "unknown key 'lr'. Did you mean 'optimizer.lr'?"),
        ("optimizer.lr=fast", "optimizer.lr = 'fast': expected float, got str"),
        ("model.heads=3", "model.width = 128 is not divisible by model.heads = 3"),
        ("window=99999", "window = 99999 tokens is longer than model.max_length"),
        ("data=wikitext3", "unknown data 'wikitext3'. Did you mean 'wikitext2'"),
        ("optimizer=adam", "optimizer = 'adam': expected optimizer.FIELD, a field of it: lr, "),
        ("steps==1", "=1"),
        ("steps", "'steps': expected FIELD=VALUE; --help"),
        ("--steps", "--steps: fields are written without dashes: steps=VALUE"),
        ("--eval-every=5", "without dashes: eval_every=VALUE"),
        ("--norm=dyt", "without dashes: norm=VALUE"),
        ("steps=1,2", "steps=1,2: several values are a sweep: add -m; a list is steps=[1,2]"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_or_two(capsys, monkeypatch, argument, message):
    status, printed = run(capsys, monkeypatch, "train", argument)
    assert status == 2
    assert message in printed
    assert "Traceback" not in printed
    assert printed.strip().count("\n") <= 2


@pytest.mark.parametrize("argument", ["norm=dyt", "placement=pre", "experiment=table"])
def test_a_group_of_another_program_is_an_unknown_key(capsys, monkeypatch, argument):
    status, printed = run(capsys, monkeypatch, "evaluate", argument)
    assert status == 2
    assert f"unknown key '{argument.partition('=')[0]}'" in printed
    assert "checkpoint" in printed
    assert "+" not in printed


def test_the_traceback_is_behind_a_flag(capsys, monkeypatch):
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(ValueError, match="not divisible"):
        run(capsys, monkeypatch, "train", "model.heads=3")


@pytest.mark.parametrize("app", SCHEMAS)
def test_help_explains_every_field(capsys, monkeypatch, app):
    status, printed = run(capsys, monkeypatch, app, "--help")
    assert status == 0
    for path, _, text in describe(SCHEMAS[app]()):
        assert text, f"{path} has no description"
        assert path in printed
        assert text in printed


@pytest.mark.parametrize("name", norms)
def test_help_tells_the_fields_of_the_norm_that_is_named(capsys, monkeypatch, name):
    _, printed = run(capsys, monkeypatch, "train", f"norm={name}", "--help")
    found = {x.split("=")[0].strip() for x in printed.splitlines() if x.startswith("  norm.")}
    assert found == {f"norm.{path}" for path, _, _ in describe(norms[name].Config())}


def test_help_begins_with_the_examples(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    cli.launch("train", TrainConfig, lambda *_: None, "\nONE\nTWO\n")
    printed = capsys.readouterr().out
    assert printed.startswith("python -m train [FIELD=VALUE ...]\n\n  ONE\n  TWO\n\n  model.")


def test_help_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    _, printed = run(capsys, monkeypatch, "train", "--help")
    assert max(map(len, printed.splitlines())) <= 80
    together = " ".join(printed.split())
    assert all(" ".join(text.split()) in together for _, _, text in describe(TrainConfig()))


@pytest.mark.parametrize("app", SCHEMAS)
def test_examples_in_the_help_compose(app):
    """Each line of them is a command whose fields there are."""
    module = importlib.import_module(f"{app}.__main__")
    commands = [x.split("   ")[0].split() for x in module.EXAMPLES.splitlines() if x]
    assert commands
    for _, _, name, *arguments in commands:
        assert importlib.util.find_spec(name), name
        if name in SCHEMAS and not {"-m", "list"} & set(arguments):
            rest, _ = without_model(arguments) if name == "evaluate" else (arguments, None)
            composed(name, *rest)


def test_a_reader_that_has_read_enough_is_no_error(tmp_path):
    command = f"{sys.executable} -m evaluate list | head -1; echo status ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("norms: ")
    assert not done.stderr


@pytest.mark.parametrize("name", norms)
def test_every_norms_fields_have_a_description(name):
    assert all(text for _, _, text in describe(norms[name].Config()))


def test_a_norm_in_one_file_is_known_at_once(capsys, monkeypatch):
    @norms.register("toy")
    class Toy(Norm):
        """A norm that exists in this test only."""

    try:
        assert composed("train", "norm=toy").norm.type == "rmsnorm"  # it has no config of its own
        _, printed = run(capsys, monkeypatch, "train", "--help")
        assert "toy" in printed
    finally:
        norms.remove("toy")


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "null"), (True, "true"), (1.0, "1.0"), (0, "0"), (1e-8, "1e-08"), ("a", "a"),
     (("x", "y"), "[x,y]")],
)  # fmt: skip
def test_values_are_shown_as_one_writes_them(value, written):
    assert cli.shown(value) == written


def test_what_jax_runs_into_keeps_its_traceback(monkeypatch):
    import jax.numpy as jnp

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(TypeError, match="incompatible shapes"):
        cli.launch("train", TrainConfig, lambda *_: jnp.ones(2) + jnp.ones(3))


@pytest.mark.system
def test_a_sweep_trains_each_in_turn(tmp_path):
    arguments = [
        "-m", "norm=rmsnorm,none", "model=tiny", "data=embedded", "data.vocab_size=300", "steps=4",
        "optimizer.warmup=1", "window=32", "eval_every=4", "eval_windows=4", f"runs={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "train", *arguments], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert sorted(p.name.split("-")[0] for p in tmp_path.glob("*-pre-*")) == ["none", "rmsnorm"]
