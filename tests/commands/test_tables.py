"""`python -m evaluate show`: the tables of earlier calls, made of their records alone."""

import pytest

from normlab.commands.tables import show
from normlab.results import RecordFile
from tests.support.records import record


def test_the_tables_of_several_folders_come_again_and_the_legend_once(tmp_path, capsys):
    for name, perplexity in (("real", 30.0), ("small", 90.0)):
        file = RecordFile(tmp_path / name / "records.jsonl")
        file.add(record(name, perplexity=perplexity, window=int(perplexity)))
        moved = {"delta": 1.0, "delta_stderr": 0.1}
        file.add(record(name, "fp16", perplexity=perplexity + 1, window=int(perplexity), **moved))
    show([str(tmp_path / "small"), str(tmp_path / "real")])
    text = capsys.readouterr().out
    assert text.index("90.000") < text.index("fp16 takes small from 90.000") < text.index("30.000")
    assert "fp16 takes real from 30.000 to 31.000." in text
    assert text.count("Δ is the difference") == 1


def test_a_folder_without_records_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no records"):
        show([str(tmp_path)])
