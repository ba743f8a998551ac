"""A claim from its file to its verdict, an interruption between."""

import signal
from pathlib import Path

import pytest

from normlab.commands import claims
from normlab.runs.run import Run
from tests.support.claims import TINY, written
from tests.support.runs import signalled

pytestmark = pytest.mark.system

MINE = Path("mine.yaml")


def called(capsys, *arguments):
    claims.main(arguments)
    return capsys.readouterr().out


def test_a_claim_is_run_interrupted_continued_and_read_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = {"arms": {"a": "", "b": ""}, "seeds": [0, 1], "expects": "a = b"}
    own["common"] = f"{TINY} steps=4 log_every=1"
    file = written(MINE, **own, margin=0.5)
    assert "defined, not run: 1" in called(capsys, file)
    with monkeypatch.context() as patch:
        signalled(patch, 2, signal.SIGTERM)
        with pytest.raises(SystemExit) as left:
            claims.main([file, "--run"])
    assert left.value.code == 128 + signal.SIGTERM
    assert not Path("results").exists()
    (begun,) = [Run(path) for path in Path("runs/claims").iterdir()]
    assert begun.record["state"] == "running"
    ran = called(capsys, file, "--run")
    assert begun.record["state"] == "finished"
    assert [s["from_step"] for s in begun.read("provenance.json")["sessions"]] == [0, 2]
    assert ran.count("finished already") == 2  # b's runs are a's
    assert "**holds**" in ran
    assert "+0 (+0 to +0)" in ran
    assert "2 seeds" in ran
    page = called(capsys, file)
    assert page == ran[ran.index("# Claims") :]
    assert "written to page.md" in called(capsys, file, "--page", "page.md")
    kept = Path("page.md").read_text().replace(" --page page.md", "")
    assert kept == page.removesuffix("\n")
    file = written(MINE, **own, margin=0.4)
    assert "defined, not run: 1" in called(capsys, file)  # another margin was not asked for before
    assert Path("results/claims/mine.json").exists()


def test_a_claim_of_an_evaluation_compares_windows(tmp_path, monkeypatch, capsys, alone):
    monkeypatch.chdir(tmp_path)
    own = {
        "metric": "window_nll", "rates": [], "seeds": [],
        "common": f"run={alone.directory} precision=[fp32] max_windows=4",
        "arms": {"a": "transform=[none]", "b": "transform=[fold]"},
    }  # fmt: skip
    file = written(MINE, **own, expects="a = b", margin=1e-4)
    ran = called(capsys, file, "--run")
    assert "**holds**" in ran
    assert "4 windows" in ran
    assert called(capsys, file) == ran[ran.index("# Claims") :]
    other = written(MINE, **own, expects="b < a", margin=0.1)
    assert "**fails**" in called(capsys, other, "--run")


def test_an_unknown_claim_is_refused_with_the_nearest(capsys):
    with pytest.raises(SystemExit) as left:
        claims.main(["qk-norm"])
    assert left.value.code == 2
    assert "unknown claim 'qk-norm'. Did you mean 'qk-norm-rate'?" in capsys.readouterr().err
