import os

import pytest

from normlab.runs.run import Run, load, open_run


def test_files_come_back_as_they_were_written(tmp_path):
    run = Run(tmp_path / "new")
    for name in ("a.json", "a.yaml"):
        assert run.read(name) == {}
        run.write(name, {"x": [1, None, "ä"], "y": {"z": 1e-5}})
        assert run.read(name) == {"x": [1, None, "ä"], "y": {"z": 1e-5}}
    assert sorted(p.name for p in run.directory.iterdir()) == ["a.json", "a.yaml"]


@pytest.mark.parametrize(
    ("state", "ended"),
    [("finished", True), ("stopped early", True), ("diverged", True), ("running", False)],
)
def test_a_run_has_ended_when_its_record_says_so(tmp_path, state, ended):
    run = Run(tmp_path)
    assert not run.ended
    run.write("record.json", {"state": state})
    assert run.ended == ended


def test_a_half_written_line_is_no_metric_and_another_bad_one_is_named(tmp_path):
    run = Run(tmp_path)
    assert run.metrics == []
    run["metrics.jsonl"].write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert run.metrics == [{"step": 1}, {"step": 2}]
    run["metrics.jsonl"].write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: no JSON"):
        _ = run.metrics
    run["record.json"].write_text("{")
    with pytest.raises(ValueError, match=r"record\.json can't be read"):
        _ = run.record


@pytest.mark.parametrize("content", [b"a:\t1", b"a: \xe9", b"a: ["])
def test_a_config_that_cannot_be_read_is_named(tmp_path, content):
    run = Run(tmp_path)
    run["config.yaml"].write_bytes(content)
    for ask in (lambda: run.read("config.yaml"), lambda: run.is_older):
        with pytest.raises(ValueError, match=rf"{tmp_path}/config\.yaml can't be read: "):
            ask()


def test_a_run_of_64_bits_is_not_taken_for_damaged(tmp_path):
    run = Run(tmp_path)
    run.write("config.yaml", {})
    run.write("provenance.json", {"sessions": [{"jax_settings": {"jax_enable_x64": True}}]})
    with pytest.raises(ValueError, match=f"{tmp_path} was trained with JAX_ENABLE_X64=1: expected"):
        load(tmp_path)


def test_one_process_at_a_time_holds_a_directory(tmp_path):
    run = Run(tmp_path)
    with (
        run.locked(),
        pytest.raises(ValueError, match=rf"by another process \({os.getpid()} on"),
        Run(tmp_path).locked(),
    ):
        pass
    with run.locked():
        pass


def test_what_is_no_run_directory_is_refused_and_the_ones_beside_it_named(tmp_path):
    Run(tmp_path / "rmsnorm-pre-1").write("config.yaml", {})
    with pytest.raises(FileNotFoundError, match=r"is no run directory .*rmsnorm-pre-1"):
        open_run(tmp_path / "rmsnorm-pre-2")
    with pytest.raises(FileNotFoundError, match=rf"It holds runs; say runs={tmp_path}, or"):
        open_run(tmp_path)
    assert open_run(tmp_path / "rmsnorm-pre-1").directory.name == "rmsnorm-pre-1"


def test_the_nearest_runs_are_named(tmp_path):
    for name in ("dyt-pre-1", "dyt-pre-2", "dyt-pre-3", "rmsnorm-pre-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"Beside it: \S*rmsnorm-pre-1"):
        open_run(tmp_path / "rmsnorm-pre-HASH")
