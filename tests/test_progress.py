import io

from rich.console import Console

from normlab import progress


def test_plain_lines_in_a_pipe_say_how_far_and_how_long(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    clock = iter([0.0, 90.0, 91.0, 92.0])  # the first step compiles: it says nothing of the pace
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
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


def test_on_a_terminal_of_80_columns_nothing_is_cut(monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "console", terminal)
    with progress.Progress("layernorm peri seed 0", total=2000) as bar:
        bar.update(1234, "loss 7.887, 11,970 tokens/s")
    last = shown.getvalue().replace("\r", "\n").split("\n")[-2]
    for part in ("layernorm peri seed 0", "1234/2000", "loss 7.887, 11,970 tokens/s", "left"):
        assert part in last
    assert "…" not in last
