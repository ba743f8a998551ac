"""Records: JSON and back, the file, what a kill leaves behind."""

import dataclasses
import json
import math
import multiprocessing
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from normlab.results import Record, RecordFile
from normlab.results.fields import ModelInfo
from tests.support.records import grouped

FULL = grouped(
    key="k1",
    norm="rmsnorm",
    placement="pre",
    precision="fp16:lanes8+slanc",
    perplexity=math.inf,
    sum_nll=math.nan,
    delta=-math.inf,
    delta_stderr=0.25,
    token_delta_max=math.inf,
    token_delta_max_at=[1, 3],
    kl_mean=math.nan,
    tokens_scored=7,
    sites={"norm_final": {"rows": 3, "max_norm": math.inf, "scale": [[2.0], [0.5]]}},
    window_nll=[1.5, math.nan],
    window_tokens=[3, 4],
    facts={"config": {"seed": 3}, "text": "größer"},
)
UNGROUPED = Path(__file__).parent.parent / "support" / "records_schema1.jsonl"
"""What 6c9fef6 wrote of tiny runs, sites cut to one: in two precisions, diverged."""


def test_no_name_is_in_two_groups_and_a_table_has_every_single_value():
    names = [name for value in vars(FULL).values() if is_dataclass(value) for name in vars(value)]
    assert len(set(names)) == len(names)
    assert not set(names) & {f.name for f in dataclasses.fields(Record)}
    nested = {"model", "text", "result", "comparison", "ranges", "provenance"}
    lists = {f"window_{what}" for what in ("nll", "tokens", "words")} | {"token_delta_max_at"}
    dicts = {"config", "norm_config", "placement_config", "facts", "sites", "environment"}
    own = {*("key", "precision", "status"), *names} - lists - dicts - nested
    assert FULL.flat().keys() == own - {"name", "sha256"} | {"model", "text_sha256"}


def leaves(values):
    """Field → value of JSON in groups."""
    groups = ("model", "text", "result", "comparison", "ranges", "provenance")
    inside = [values[group] for group in groups if group in values]
    rest = {k: v for k, v in values.items() if k not in (*groups, "schema")}
    return {k: v for group in [rest, *inside] for k, v in group.items()}


def test_an_old_file_without_groups_and_the_same_in_groups_are_the_same_records(tmp_path):
    lines = UNGROUPED.read_text().splitlines()
    records = RecordFile(UNGROUPED).read()
    assert len(records) == len(lines) > 2
    again = RecordFile(tmp_path / "records.jsonl")
    for line, record in zip(lines, records, strict=True):
        again.add(record)
        found, old = leaves(json.loads(record.to_json())), json.loads(line)
        renamed = {"model": "name", "model_config": "config", "provenance": "environment"}
        renamed |= {"text_sha256": "sha256"}
        for younger in ("datapath", "activations", "outside_elements"):
            assert found.pop(younger) is None
        assert found == {renamed.get(name, name): value for name, value in old.items()}
    written = again.path.read_text()
    assert [json.loads(line)["schema"] for line in written.splitlines()] == [2] * len(lines)
    assert [r.to_json() for r in again.read()] == [r.to_json() for r in records]
    assert (
        records[1].comparison.delta == records[1].result.perplexity - records[0].result.perplexity
    )
    least = {"key": "k", "model": "m", "precision": "fp32"}  # from before there were transforms
    assert Record.from_json(json.dumps(least)) == Record("k", "fp32", ModelInfo("m"))


def test_a_later_versions_record_is_refused():
    with pytest.raises(ValueError, match="a record of schema 3: expected at most 2"):
        Record.from_json(json.dumps(json.loads(FULL.to_json()) | {"schema": 3}))


def test_json_is_standard_and_gives_back_the_record():
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    values = json.loads(FULL.to_json(), parse_constant=refuse)
    assert values["result"]["perplexity"] == "inf"
    assert values["result"]["sum_nll"] == "nan"
    again = Record.from_json(FULL.to_json())
    assert again.to_json() == FULL.to_json()
    assert again.result.perplexity == again.comparison.token_delta_max == math.inf
    assert again.comparison.token_delta_max_at == [1, 3]
    assert math.isnan(again.result.window_nll[1])
    assert again.ranges == FULL.ranges


@pytest.mark.parametrize("given", [{"perplexty": 3}, {"schema": 2, "result": {"perplexty": 3}}])
def test_an_unknown_field_is_refused(given):
    with pytest.raises(ValueError, match="Did you mean 'perplexity'"):
        Record.from_json(json.dumps({"key": "k"} | given))


def test_a_file_keeps_records_in_order_and_drops_a_half_line(tmp_path):
    file = RecordFile(tmp_path / "deep" / "records.jsonl")
    assert file.read() == []
    file.add(FULL)
    half = dataclasses.replace(FULL, key="k2").to_json()[:40]
    with file.path.open("a") as f:
        f.write(half)
    assert [r.key for r in file.read()] == ["k1"]
    file.add(dataclasses.replace(FULL, key="k3"))
    assert [r.key for r in file.read()] == ["k1", "k3"]
    assert file.path.read_text().endswith("}\n")


@pytest.mark.parametrize("bad", ["{", '{"key": "k", "perplexty": 3}', "3", "{}", "\xff"])
def test_a_line_that_is_no_record_is_named_and_blocks_nothing(tmp_path, caplog, bad):
    file = RecordFile(tmp_path / "records.jsonl")
    file.add(FULL)
    with file.path.open("ab") as f:
        f.write(bad.encode("latin-1") + b"\n")
    file.add(dataclasses.replace(FULL, key="k2"))
    assert [r.key for r in file.read()] == ["k1", "k2"]
    assert f"{file.path}, line 2 is no record and is left out" in caplog.text
    caplog.clear()
    file.mend()
    assert f"line 2 was no record and is now in {tmp_path / 'records.bad'}" in caplog.text
    assert (tmp_path / "records.bad").read_text().count("\n") == 1
    caplog.clear()
    file.mend()
    assert [r.key for r in file.read()] == ["k1", "k2"]
    assert not caplog.text


def add_some(path, barrier, number):
    barrier.wait()
    for n in range(150):
        RecordFile(path).add(dataclasses.replace(FULL, key=f"{number}:{n}"))


@pytest.mark.system
def test_of_processes_that_add_to_one_file_no_record_is_lost(tmp_path):
    context = multiprocessing.get_context("spawn")
    path, barrier = tmp_path / "out" / "records.jsonl", context.Barrier(4)
    adding = [context.Process(target=add_some, args=(path, barrier, n)) for n in range(4)]
    for process in adding:
        process.start()
    for process in adding:
        process.join(120)
        assert process.exitcode == 0
    keys = [r.key for r in RecordFile(path).read()]
    assert sorted(keys) == sorted(f"{p}:{n}" for p in range(4) for n in range(150))
