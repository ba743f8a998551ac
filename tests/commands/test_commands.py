"""The command line: what composes, what is refused, what help explains."""

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from normlab.commands.errors import OTHER_WORDS, TRACEBACK
from normlab.commands.groups import CONFIGS, register
from normlab.commands.help import shown
from normlab.commands.launch import launch, verb
from normlab.config import build, describe, field, to_dict
from normlab.norms import Norm, NormConfig, norms
from normlab.training.config import TrainConfig
from tests.support.command_line import ROOT, SCHEMAS, composed, evaluation

APPS = ("train", "evaluate")


def run(capsys, monkeypatch, app, *arguments):
    """(exit status, what was printed) of the command line with a main that does nothing."""
    monkeypatch.setattr(sys, "argv", [app, *arguments])
    status = 0
    try:
        launch(app, SCHEMAS[app], lambda config, asked: print(config))
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    return status, printed.out + printed.err


FILES = sorted(p.relative_to(CONFIGS) for p in CONFIGS.glob("*/*.yaml"))
GROUPS = {group: list(files) for group, files in groupby(FILES, lambda p: p.parent.name)}
EXPERIMENTS = GROUPS.pop("experiment")
for group in ("datapath", "claims"):  # which no command composes: they have tests of their own
    del GROUPS[group]


TOGETHER = [[file for file in files if file] for files in zip_longest(*GROUPS.values())]
"""Of each group one."""
NEEDED = {"text": ["data.path=FILE"], "hf": ["data.name=NAME"]}
"""By a file's name what has to be said beside it."""


@pytest.mark.system
@pytest.mark.parametrize("files", TOGETHER, ids=lambda files: " ".join(f.stem for f in files))
def test_every_file_composes_to_what_it_says(files):
    beside = [field for file in files for field in NEEDED.get(file.stem, [])]
    config = composed("train", *(f"{file.parent}={file.stem}" for file in files), *beside)
    for file in files:
        chosen = yaml.safe_load((CONFIGS / file).read_text())
        chosen.pop("defaults", None)
        part = getattr(config, file.parent.name)
        assert chosen == {key: getattr(part, key) for key in chosen}


@pytest.mark.system
@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda f: f.stem)
def test_every_experiment_composes_to_what_it_says(file):
    chosen = OmegaConf.to_container(OmegaConf.load(CONFIGS / file))  # 1e-3 is a number to it
    config = to_dict(composed("train", f"experiment={file.stem}"))
    said = {k: v for k, v in chosen.items() if k in config}
    assert said
    for key, value in said.items():
        asked = value.items() if isinstance(value, dict) else ()
        assert value == config[key] or all(config[key][k] == v for k, v in asked)


def test_the_defaults_are_the_dataclasses_and_a_file_changes_what_it_says_and_nothing_else():
    config = composed("train", "model=small", "norm=layernorm-nobias")
    assert config.optimizer == TrainConfig().optimizer
    assert config.norm == norms["layernorm"].Config(bias=False)
    assert composed("train", "norm=rmsnorm").norm == norms["rmsnorm"].Config()


def test_every_norm_that_can_be_trained_can_be_asked_for():
    register("train", TrainConfig)
    known = ConfigStore.instance().list("norm")
    for name in norms:
        assert f"{name}.yaml" in known
        given = {"norm": ConfigStore.instance().load(f"norm/{name}.yaml").node}
        if norms[name].differentiable:
            assert build(TrainConfig, given).norm == norms[name].Config()
        else:
            with pytest.raises(ValueError, match=rf"norm={name} rounds.*transform=\[{name}\]"):
                build(TrainConfig, given)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("norm=rmsnrom", "unknown norm 'rmsnrom'. Did you mean 'rmsnorm'"),
        ("placement=perry", "unknown placement 'perry'. Did you mean 'peri'"),
        ("norm.type=layernorm", "norm.type=layernorm would have the defaults of norm=rmsnorm"),
        ("placement.type=peri", "would have the defaults of placement=pre: expected placement=p"),
        ("norm.type=rmsnrom", "unknown norm 'rmsnrom'. Did you mean 'rmsnorm'"),
        ("norm.epz=1", "unknown key of norm 'epz'. Did you mean 'eps'"),
        ("model.width.x=1", "model.width is one value and has no keys; expected model.width=VALUE"),
        ("stepz=1", "unknown key 'stepz'. Did you mean 'steps'"),
        ("lr=1e-3", "unknown key 'lr'. Did you mean 'optimizer.lr'?"),
        ("learning_rate=1e-3", "unknown key 'learning_rate'. Did you mean 'optimizer.lr'?"),
        ("n_layer=3", "unknown key 'n_layer'. Did you mean 'model.layers'?"),
        ("norm=", "norm=: expected a name; left out it is norm=rmsnorm. Known: ai-layernorm, "),
        ("norm=null", "norm=null: expected a name; left out it is norm=rmsnorm. Known: "),
        ("norm=[rmsnorm,dyt]", "expected one name; several in turn: -m norm=rmsnorm,dyt"),
        ("norm_at=[{site:norm_final}]", "unknown key of norm_at[0] 'site'. Did you mean 'sites'"),
        ("norm=rmsnorm,null", "norm=rmsnorm,null: expected a name; left out it is norm=rmsnorm"),
        ("experiment=null", "experiment=null: expected a name; left out there is none. Known: "),
        ("optimizer.lr=fast", "optimizer.lr = 'fast': expected a number"),
        ("model.heads=3", "model.width = 128 is not divisible by model.heads = 3"),
        ("window=99999", "window = 99999 tokens is longer than model.max_length"),
        ("data=wikitex2", "unknown data 'wikitex2'. Did you mean 'wikitext2'"),
        (
            "optimizer=adam",
            "unknown optimizer 'adam'. Did you mean 'adamw'? Known: adafactor, adam",
        ),
        ("steps==1", "'steps==1': the value has a sign that must stand in quotes"),
        ("run=runs/lr=1e-3", "'run=\"runs/lr=1e-3\"'"),
        ('norm="rmsnorm', "'norm=\"rmsnorm\"'"),
        ("run=é", "'run=\"é\"'"),
        ("run=a#1", "'run=\"a#1\"'"),
        ("data=a/b.txt", "data=a/b.txt: a text of your own is data=text data.path=a/b.txt"),
        ("data=c.jsonl.gz", "a text of your own is data=text data.path=c.jsonl.gz"),
        ("data=text", "data.path = None: expected a place to read from, data=text data.path=FILE|"),
        ("data.path=c.txt", "data.path = c.txt: expected data=text beside it, and not data=auto"),
        ("steps", "'steps': expected FIELD=VALUE without spaces, or a verb; --help"),
        ("--steps", "--steps: fields are written without dashes: steps=VALUE"),
        ("--eval-every=5", "without dashes: eval_every=VALUE"),
        ("--norm=dyt", "without dashes: norm=VALUE"),
        ("devices=4", "unknown key 'devices'. Did you mean 'mesh.data'?"),
        ("mesh=[4,1]", "a list was given for a group of fields: expected GROUP.FIELD=VALUE"),
        ("steps=1,2", "steps=1,2: several values are a sweep: add -m; a list stands in brackets"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line_or_two(capsys, monkeypatch, argument, message):
    status, printed = run(capsys, monkeypatch, "train", argument)
    assert status == 2
    assert message in printed
    assert "Traceback" not in printed
    assert printed.strip().count("\n") <= 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# @package _global_\nsteps:\t3\n", r"mine.yaml, line 2: found character '\t'"),
        (b"# @package _global_\nsteps: 3\nsteps: 4\n", "mine.yaml, line 3: found duplicate key"),
        (b"# @package _global_\nsteps: 3 # \xe9\n", "mine.yaml: not UTF-8"),
        (b"steps: 3\n", "experiment=mine: its file has no line `# @package _global_`"),
        (b"", "experiment=mine: its file has no line `# @package _global_`"),
        (b"# @package _global_\n- a\n", "In 'experiment/mine': "),
    ],
    ids=["tab", "duplicate key", "latin-1", "no package", "empty", "list"],
)
def test_a_file_of_ones_own_that_cannot_be_read_is_named(
    capsys, monkeypatch, tmp_path, content, message
):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(content)
    arguments = ("--config-dir", str(tmp_path), "experiment=mine")
    status, printed = run(capsys, monkeypatch, "train", *arguments)
    assert status == 2
    assert message in printed
    assert "Traceback" not in printed
    assert printed.strip().count("\n") <= 2


def test_the_names_that_other_programs_have_are_of_fields_that_there_are():
    assert OTHER_WORDS.keys() <= {path for path, _, _ in describe(TrainConfig())}


def test_a_sweep_prints_an_error_once(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, printed = run(capsys, monkeypatch, "train", "-m", "steps=0,3", "optimizer.warmup=1")
    assert status == 2
    assert "Error executing job" not in printed
    assert [line.partition(":")[0] for line in printed.splitlines()][-2:] == [
        "error",
        "(NORMLAB_TRACEBACK=1 shows where)",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("norm=layernorm", "norm.type=rmsnorm"),
        ("norm=layernorm-nobias", "norm.type=rmsnorm"),
        ("placement=olmo2", "placement.type=pre"),
    ],
)
def test_a_type_on_another_types_defaults_is_refused(capsys, monkeypatch, arguments):
    """It would be trained with those, and tabulated by its name."""
    status, printed = run(capsys, monkeypatch, "train", *arguments)
    assert status == 2
    group, _, name = arguments[1].partition(".type=")
    assert f"expected {group}={name}, and its fields" in printed
    assert run(capsys, monkeypatch, "train", arguments[0])[0] == 0


@pytest.mark.parametrize("sweep", [("-m", "seed=0,1"), ("hydra.run.dir=w2",)])
def test_paths_are_from_where_the_command_was_given(monkeypatch, tmp_path, sweep):
    """Hydra would go into `runs`, and `runs` would be made there once more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", *sweep, "runs=w2", "hydra.job.chdir=true"])
    seen = []
    launch("train", TrainConfig, lambda config, asked: seen.append(Path(config.runs).resolve()))
    assert set(seen) == {tmp_path / "w2"}


@pytest.mark.parametrize("argument", ["norm=dyt", "placement=pre", "experiment=table"])
def test_a_group_of_another_program_is_an_unknown_key(capsys, monkeypatch, argument):
    status, printed = run(capsys, monkeypatch, "evaluate", argument)
    assert status == 2
    assert f"unknown key '{argument.partition('=')[0]}'" in printed
    assert "pretrained" in printed
    assert "+" not in printed


@pytest.mark.parametrize(
    ("app", "argument", "message"),
    [
        ("evaluate", "checkpoint=runs/a", "checkpoint= is now run=: run=runs/a"),
        ("evaluate", "model=hf:DIR", "model= is now pretrained=: pretrained=hf:DIR"),
        ("remove", "checkpoint=runs/a", "checkpoint= is now run=: run=runs/a"),
        ("train", "norm.scale=false", "norm.scale= is now norm.use_weight=: norm.use_weight=false"),
    ],
)
def test_an_old_name_answers_with_the_new_one(capsys, monkeypatch, app, argument, message):
    status, printed = run(capsys, monkeypatch, app, argument)
    assert status == 2
    assert message in printed


@pytest.mark.parametrize("app", APPS)
def test_an_argument_that_is_not_utf8_is_refused(capsys, monkeypatch, app):
    """A path of an older encoding, as Python hands it on: it could be written nowhere."""
    status, said = run(capsys, monkeypatch, app, "out=caf\udce9")
    assert status == 2
    assert r"'out=caf\udce9' is not UTF-8: expected" in said
    assert "quotes" in run(capsys, monkeypatch, app, "out=café")[1]


def test_a_verb_is_taken_off_and_one_nearly_written_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", "report", "DIR"])
    assert verb({"report", "list"}) == "report"
    assert sys.argv == ["evaluate", "DIR"]
    assert verb({"report", "list"}) is None
    monkeypatch.setattr(sys, "argv", ["evaluate", "reprot"])
    with pytest.raises(SystemExit):
        verb({"report", "list"})
    assert "unknown verb 'reprot'. Did you mean 'report'?" in capsys.readouterr().err


def test_an_installed_command_speaks_of_itself(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/normlab-train", "--help"])
    launch("train", TrainConfig, lambda *_: None, "\npython -m evaluate list\n")
    printed = capsys.readouterr().out
    assert printed.startswith("normlab-train [FIELD=VALUE ...]\n\n  normlab-evaluate list\n")
    assert "python -m" not in printed


def test_the_traceback_is_behind_a_flag(capsys, monkeypatch):
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(ValueError, match="not divisible"):
        run(capsys, monkeypatch, "train", "model.heads=3")


@pytest.mark.parametrize("app", APPS)
def test_help_explains_every_field(capsys, monkeypatch, app):
    status, printed = run(capsys, monkeypatch, app, "--help")
    assert status == 0
    for path, _, text in describe(SCHEMAS[app]()):
        assert text, f"{path} has no description"
        assert path in printed
        assert text in printed


def test_help_tells_and_explains_the_fields_of_the_norm_that_is_named(capsys, monkeypatch):
    for name in norms:
        fields = list(describe(norms[name].Config()))
        assert all(text for _, _, text in fields)
        _, printed = run(capsys, monkeypatch, "train", f"norm={name}", "--help")
        found = {x.split("=")[0].strip() for x in printed.splitlines() if x.startswith("  norm.")}
        assert found == {f"norm.{path}" for path, _, _ in fields}


def test_help_begins_with_the_examples(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--help"])
    launch("train", TrainConfig, lambda *_: None, "\nONE\nTWO\n")
    printed = capsys.readouterr().out
    assert printed.startswith("python -m train [FIELD=VALUE ...]\n\n  ONE\n  TWO\n\n  model.")


def test_help_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    _, printed = run(capsys, monkeypatch, "train", "--help")
    assert max(map(len, printed.splitlines())) <= 80
    together = " ".join(printed.split())
    assert all(" ".join(text.split()) in together for _, _, text in describe(TrainConfig()))


@pytest.mark.parametrize("app", APPS)
def test_examples_in_the_help_compose(app):
    """Each line of them is a command whose fields there are."""
    module = importlib.import_module(f"normlab.commands.{app}")
    commands = [x.split("   ")[0].split() for x in module.EXAMPLES.splitlines() if x]
    assert commands
    for _, _, name, *arguments in commands:
        assert importlib.util.find_spec(name), name
        if all("=" in argument for argument in arguments):
            evaluation(*arguments) if name == "evaluate" else composed(name, *arguments)


@pytest.mark.system
def test_a_reader_that_has_read_enough_is_no_error():
    command = f"{sys.executable} -m evaluate list | head -1; echo status ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("norms (")
    assert not done.stderr


def test_a_norm_in_one_file_is_known_at_once(capsys, monkeypatch):
    @dataclass(frozen=True)
    class ToyConfig(NormConfig):
        type: str = field("toy", "norm type")

    @norms.register("toy")
    class Toy(Norm):
        """A norm that exists in this test only."""

        Config = ToyConfig

    try:
        assert composed("train", "norm=toy").norm.type == "toy"
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
    assert shown(value) == written


def test_what_jax_runs_into_keeps_its_traceback(monkeypatch):
    import jax.numpy as jnp

    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(TypeError, match="incompatible shapes"):
        launch("train", TrainConfig, lambda *_: jnp.ones(2) + jnp.ones(3))
