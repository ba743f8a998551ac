"""Documents in files: kinds, compressions, and which split a file is."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from normlab.data import CorpusDamagedError, CorpusUnavailableError, DataConfig, load_corpus
from normlab.data import files as files_file
from normlab.data.config import TextConfig
from normlab.data.files import documents, source
from normlab.registry import UnknownNameError

TEXT = "one\ntwo\n\nthree\r\n\n\nfour é"
BLOCKS = ["one\ntwo\n\n", "three\r\n\n\n", "four é"]
ROWS = ['one, "two"\nlines', "three", "é"]


def zst(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst, "": bytes}


@pytest.mark.parametrize("ending", PACKED)
def test_a_text_is_its_blocks_however_it_is_compressed(ending, tmp_path):
    file = tmp_path / f"a.b.txt{ending}"
    file.write_bytes(PACKED[ending](TEXT.encode()))
    assert list(documents(file)) == BLOCKS
    assert source(TextConfig(corpus="text", path=str(file))).name == "a"


def written(folder, kind, **more):
    file, table = folder / f"t.{kind}", {"id": [1, 2, 3], "text": ROWS} | more
    if kind == "parquet":
        pq.write_table(pa.table(table), file)
    elif kind == "csv":
        import csv

        with file.open("w", newline="") as out:
            lines = csv.writer(out)
            lines.writerows([table.keys(), *zip(*table.values(), strict=True)])
    else:
        rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
        packed = gzip.compress("\n".join(map(json.dumps, rows)).encode())
        (file := folder / "t.jsonl.gz").write_bytes(packed)
    return file


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_records_of_every_kind_are_the_same_documents(kind, tmp_path):
    file = written(tmp_path, kind, other=["x", "y", "z"])
    assert list(documents(file)) == [f"{row}\n\n" for row in ROWS]
    assert list(documents(file, "other")) == ["x\n\n", "y\n\n", "z\n\n"]
    with pytest.raises(UnknownNameError, match=r"data.column of .*'txt'. Did you mean 'text'\?"):
        list(documents(file, "txt"))


@pytest.mark.parametrize(
    ("columns", "names"), [({"a": 1, "body": "x"}, "body"), ({"a": "y", "b": "x"}, None)]
)
def test_the_only_column_of_strings_is_the_text(columns, names, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(columns))
    if names:
        assert list(documents(tmp_path / "a.jsonl")) == ["x\n\n"]
    else:
        with pytest.raises(ValueError, match="several columns of text: .*NAME, one of a, b"):
            list(documents(tmp_path / "a.jsonl"))


def own(path):
    found = source(TextConfig(corpus="text", path=str(path)))
    return {split: "".join(found.read(split)) for split in found.own}


def test_files_are_the_splits_that_their_names_begin_with(tmp_path):
    names = ("train-0", "train_1", "dev", "Validation-1", "test", "testament", "b", "deep/val")
    (tmp_path / "deep").mkdir()
    for name in names:
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    (tmp_path / "README.md").write_text("no text")
    assert own(tmp_path) == {
        "valid": "Validation-1\ndeep/val\ndev\n",
        "train": "b\ntestament\ntrain-0\ntrain_1\n",
        "test": "test\n",
    }
    assert own(tmp_path / "t*t.txt") == {"test": "test\n", "train": "testament\n"}
    assert own(tmp_path / "dev.txt") == {"valid": "dev\n"}


def test_a_line_of_any_length_becomes_documents_that_join_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files_file, "LONGEST", 8)
    monkeypatch.setattr("normlab.data.documents.LONGEST", 8)
    text = "ab cde fghi jkl mnopqrstuvwxyz0123 é"
    (tmp_path / "a.txt").write_text(text)
    made = list(documents(tmp_path / "a.txt"))
    assert "".join(made) == text
    assert max(map(len, made)) <= 24
    assert made[0] == "ab cde fghi jkl "


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "line 2: no JSON"),
        ("a.jsonl", b"[1]", "line 1: expected an object"),
        ("a.jsonl", b'{"text": 1}', "holds int: expected text"),
        ("a.txt.gz", gzip.compress(b"text " * 99, mtime=0)[:-20], "can't be read"),
        ("a.txt.xz", b"no archive", "can't be read"),
        ("a.parquet", b"no table", "can't be read"),
    ],
)
def test_a_damaged_file_is_named(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusDamagedError, match=said) as error:
        list(documents(tmp_path / name))
    assert name in str(error.value)


def test_what_is_not_there_or_of_no_kind_is_refused(tmp_path):
    with pytest.raises(CorpusUnavailableError, match="no such file or folder"):
        own(tmp_path / "nowhere")
    with pytest.raises(CorpusUnavailableError, match=r"no file of a known kind.*\.jsonl.*\.zst"):
        own(tmp_path)
    (tmp_path / "a.pdf").write_text("")
    with pytest.raises(UnknownNameError, match=r"kind of file of .*'\.pdf'"):
        own(tmp_path / "a.pdf")


def test_a_corpus_of_files_has_a_name_by_its_content(tmp_path):
    def corpus():
        path = str(tmp_path / "my notes.txt")
        return load_corpus(DataConfig(corpus="text", path=path, cache=str(tmp_path / "cache")))

    file = tmp_path / "my notes.txt"
    file.write_text("".join(f"document {i}\n\n" for i in range(99)))
    first = corpus()
    assert first.name == f"my-notes-{first.parts.digest}"
    assert first.title == "my notes.txt"
    assert first.revision.endswith("valid and test cut 90/5/5 by document hash")
    assert "".join(first.documents("test")) == first.text("test")
    file.write_text(file.read_text() + "one more\n")
    assert corpus().name != first.name
