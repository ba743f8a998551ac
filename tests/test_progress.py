import re

from normlab import progress


def test_plain_lines_in_a_pipe_say_how_far_and_how_long(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress.Progress("training", total=4, start=1) as bar:
        bar.update(2, "loss 3.000")
        bar.update(4, "loss 2.000")
    lines = capsys.readouterr().out.strip().split("\n")
    assert len(lines) == 2
    assert re.fullmatch(r"training: 2/4  loss 3.000  \d+ s left", lines[0])
    assert re.fullmatch(r"training: 4/4  loss 2.000  0 s left", lines[1])


def test_lines_are_few(capsys):
    with progress.Progress("training", total=100) as bar:
        for step in range(1, 101):
            bar.update(step, "")
    assert capsys.readouterr().out.count("\n") == 1
