"""What a report is made of: found, read, told apart, refused where it can't be read."""

import pytest

from normlab.commands.report import main
from normlab.report.sources import read
from normlab.results.stream import in_order
from tests.support.report_sources import record, write_records, write_run

CONFIG = {"norm": {"type": "rmsnorm"}, "optimizer": {"lr": 0.5}, "placement": {"type": "pre"}}


def test_an_evaluation_alone_tells_of_its_runs(tmp_path):
    training = {"state": "finished", "best_valid_loss": 2.5}
    write_records(tmp_path, record("a", facts={"config": CONFIG, "training": training}))
    (run,) = read([tmp_path]).runs
    assert (run.name, run.config["norm.type"], run.state) == ("a", "rmsnorm", "finished")
    assert run.best_loss == 2.5


def test_a_record_of_a_refused_run_tells_the_reason(tmp_path):
    status = "refused: ValueError: optimizer.warmup = 500"
    write_records(tmp_path, record("a", status=status, facts={"config": CONFIG}))
    (run,) = read([tmp_path]).runs
    assert (run.state, run.why) == ("refused", status)


def test_of_two_records_of_one_thing_the_later_one_counts(tmp_path):
    write_records(tmp_path, record("a", perplexity=1.0), record("a", perplexity=2.0))
    (found,) = read([tmp_path]).records
    assert found.result.perplexity == 2.0


def test_of_a_run_that_went_on_the_page_has_what_was_evaluated_last(tmp_path):
    def told(precision, weights, state):
        facts = {"source": "runs/a", "config": CONFIG, "training": {"state": state}}
        return record("a", precision, weights_sha256=weights, key=weights + precision, facts=facts)

    early = [told("fp32", "100", "running"), told("fp16", "100", "running")]
    write_records(tmp_path, *early, told("fp32", "200", "finished"))
    found = read([tmp_path])
    assert [r.model.weights_sha256 for r in found.records] == ["200"]
    assert [run.state for run in found.runs] == ["finished"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    for where in ("x", "y"):
        write_run(tmp_path / where, "a")
    assert [r.name for r in read([tmp_path / "x", tmp_path / "y"]).runs] == ["a", "a (2)"]


def test_sites_are_in_the_order_of_the_forward_pass():
    sites = ["norm_final", "blocks.10.mlp.norm_in", "blocks.2.mlp.norm_in", "norm_embed",
             "blocks.2.attention.norm_in"]  # fmt: skip
    assert in_order(sites) == [sites[3], sites[4], sites[2], sites[1], sites[0]]


def broken_metrics(folder):
    (write_run(folder, "a")["metrics.jsonl"]).write_text('{"step": 0}\n{"step"\n{}\n')


def broken_config(folder):
    (write_run(folder, "a")["config.yaml"]).write_text("a: [")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder.rmdir(), "no such directory"),
        (lambda folder: None, "holds neither runs (`python -m train` writes"),
        (lambda folder: (folder / "records.jsonl").touch(), "records.jsonl is empty"),
        (broken_metrics, "metrics.jsonl, line 2: "),
        (broken_config, "config.yaml can't be read: "),
    ],
)
def test_bad_input_is_refused_in_a_line_or_two(tmp_path, capsys, prepare, message):
    folder = tmp_path / "given"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(SystemExit) as end:
        main([str(folder)])
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert message in printed
    assert printed.count("\n") <= 2
