import io
import itertools
import sys
import threading

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.console import Console

from normlab import progress
from normlab.commands.groups import CONFIGS, register
from normlab.commands.launch import label, runs_of, swept_here
from normlab.training.config import TrainConfig


@pytest.fixture
def clock(monkeypatch):
    """Hand out these times, one a question."""
    return lambda *times: monkeypatch.setattr(progress.time, "monotonic", iter(times).__next__)


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal of 80 columns shows, line by line."""
    shown = io.StringIO()
    made = Console(file=shown, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "console", made)
    return lambda: [line.strip() for line in shown.getvalue().replace("\r", "\n").split("\n")]


def test_plain_lines_in_a_pipe_say_how_far_and_how_long(capsys, monkeypatch, clock):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    clock(0.0, 90.0, 90.0, 91.0, 91.0, 92.0, 92.0)  # the first step says nothing of the pace
    with progress.Progress("training", total=4, start=1) as bar:
        bar.update(2, "loss 3.000")
        bar.update(3, "loss 2.500")
        bar.update(4, "loss 2.000")
    assert capsys.readouterr().out.split("\n") == [
        "training: 2/4  loss 3.000",
        "training: 3/4  loss 2.500  1 s left",
        "training: 4/4  loss 2.000  0 s left",
        "",
    ]


def test_lines_are_few(capsys):
    with progress.Progress("training", total=100) as bar:
        for step in range(1, 101):
            bar.update(step, "")
    assert capsys.readouterr().out.count("\n") == 1


def test_on_a_terminal_of_80_columns_nothing_is_cut(terminal):
    with progress.Progress("layernorm peri seed 0", total=2000) as bar:
        bar.update(1234, "loss 7.887, 11,970 tokens/s")
        bar.update(1235, "loss 7.887, 11,970 tokens/s")
    last = terminal()[-2]
    for part in ("layernorm peri seed 0", "1235/2000", "loss 7.887, 11,970 tokens/s", "left"):
        assert part in last
    assert "…" not in last


def compiled(title="training"):
    """A loop whose program takes 0.2 s to compile, and is called twice."""
    calls = itertools.count()
    program = progress.announced(
        lambda x, y: (next(calls) or threading.Event().wait(0.2), x + y)[1]
    )
    with progress.Progress(title, total=2) as bar:
        assert program(1, y=2) == 3
        threads = threading.active_count()
        assert program(3, y=4) == 7
        bar.update(1, "loss 3.000")
        bar.update(2, "loss 3.000")
    return threads


def test_a_first_call_that_takes_long_is_compiling(capsys, monkeypatch):
    monkeypatch.setattr(progress, "TICK", 0.02)
    before = threading.active_count()
    assert compiled() <= before, "nothing ticks once it is compiled"
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "training: compiling, 0 s"
    assert last.startswith("training: 2/2  loss 3.000")
    monkeypatch.setattr(progress, "TICK", 9.0)
    compiled()
    assert "compiling" not in capsys.readouterr().out, "what is quick is not told"


def test_on_a_terminal_the_bar_says_that_it_compiles(monkeypatch, terminal):
    monkeypatch.setattr(progress, "TICK", 0.02)
    compiled()
    assert any("0/2 compiling, 0 s" in line for line in terminal())
    assert "compiling" not in terminal()[-2]


def test_without_a_loop_a_program_is_called_as_it_is():
    assert progress.announced(max)(1, 2) == 2


def test_a_sweep_says_which_run_it_is_and_when_the_last_one_ends(capsys, monkeypatch, clock):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    monkeypatch.setattr(progress, "sweep", progress.Sweep())
    monkeypatch.setattr(progress, "clock", lambda seconds: f"in {seconds:.0f} s")
    # of the first run a step takes 100 s (compiling), another 10 s: the next two are thought alike
    clock(0.0, 0.0, 100.0, 100.0, 110.0, 110.0, 110.0, 120.0, 120.0, 120.0)
    progress.sweep.begin(1, 3)
    with progress.Progress("a", total=3) as bar:
        bar.update(1, "")
        bar.update(2, "")
        bar.update(3, "")
    # a run that had ended before has no steps and says nothing of the others
    clock(120.0, 121.0, 121.0, 122.0, 122.0, 124.0, 124.0)
    progress.sweep.begin(2, 3)
    progress.sweep.begin(3, 3)
    with progress.Progress("c", total=3) as bar:
        bar.update(1, "")
        bar.update(2, "")
    assert capsys.readouterr().out.splitlines() == [
        "run 1 of 3, a: 1/3",
        "run 1 of 3, a: 2/3  10 s left  all end in 250 s",
        "run 1 of 3, a: 3/3  0 s left  all end in 240 s",
        "run 3 of 3, c: 1/3",
        "run 3 of 3, c: 2/3  2 s left  all end in 2 s",
    ]


def test_later_runs_are_thought_to_take_what_those_before_took(monkeypatch, clock):
    clock(0.0, 30.0, 31.0, 41.0)
    sweep = progress.Sweep()
    sweep.begin(1, 5)
    sweep.left(3.0)
    sweep.begin(2, 5)  # after 31 s
    assert sweep.left(6.0) == 6.0 + 3 * 31.0


def test_on_a_terminal_the_sweep_has_a_bar_of_its_own(monkeypatch, terminal):
    monkeypatch.setattr(progress, "sweep", progress.Sweep())
    progress.sweep.begin(28, 30)
    with progress.Progress("layernorm peri lr=3e-3 seed=0", total=2000) as bar:
        bar.update(1, "loss 7.887, 11,970 tokens/s")
        bar.update(2, "loss 7.887, 11,970 tokens/s")
    (last,) = [line for line in terminal()[-3:] if "run 28 of 30" in line]
    assert "run 28 of 30: layernorm peri lr=3e-3 seed=0" in "".join(terminal())
    assert "27/30" in last
    assert "all end at" in last


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (89.4, "89 s"), (100, "2 min"), (5000, "83 min"), (7500, "2 h 5 min")],
)
def test_a_duration_is_said_in_its_unit(seconds, said):
    assert progress.duration(seconds) == said


def test_another_day_is_named():
    assert len(progress.clock(0.0)) == len("at 14:32")
    assert len(progress.clock(48 * 3600.0).split()) == 4


def test_a_run_of_a_sweep_is_called_by_what_sets_it_apart():
    """Two that differ in the learning rate alone have two names; what all share is left out."""
    given = ["norm=rmsnorm,dyt", "optimizer.lr=1e-3,1e-2", "norm.eps=1e-5,1e-6", "steps=9"]
    swept = [o for o in OverridesParser.create().parse_overrides(given) if o.is_sweep_override()]
    asked = ["norm=rmsnorm", "optimizer.lr=1e-3", "norm.eps=1e-6", "steps=9"]
    assert label(asked, swept) == "rmsnorm lr=1e-3 eps=1e-6"


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        ("-m norm=rmsnorm,dyt seed=0,1,2 model=tiny", 6),
        ("-m seed=range(4) runs=/tmp/here", 4),
        ("experiment=dyt-alpha norm.alpha=1.0,2.0", 2 * 2 * 3),  # the file's five alphas give way
        ("-m norm=glob(*) seed=0,1", None),  # only Hydra knows how many those are
        ("-m seed=0,1 hydra/launcher=elsewhere", None),
    ],
)
def test_the_runs_of_a_sweep_are_counted_where_one_process_makes_them_all(
    monkeypatch, arguments, runs
):
    monkeypatch.setattr(sys, "argv", ["train", *arguments.split()])
    register("train", TrainConfig)
    experiment = [a for a in sys.argv if a.startswith("experiment")]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", experiment, return_hydra_config=True)
    if "elsewhere" in arguments:
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.runtime.choices["hydra/launcher"] = "joblib"
    HydraConfig.instance().set_config(config)
    try:
        swept = swept_here()
        assert (swept if swept is None else runs_of(swept)) == runs
    finally:
        HydraConfig.instance().cfg = None
