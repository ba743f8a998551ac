"""Documents in tokens on disk: the same bytes, however often the writing was interrupted."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normlab.data import ByteTokenizer, CharTokenizer, WordTokenizer, shards

DOCUMENTS = [f"document {i} of é\n" * (1 + i % 3) for i in range(40)]
FEW = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Killed(Exception):
    pass


class Mortal(ByteTokenizer):
    """Encodes so many batches, and dies."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def encode_each(self, texts):
        if not self.left:
            raise Killed
        self.left -= 1
        return super().encode_each(texts)


def facts(documents):
    raw = "".join(documents).encode()
    return {"characters": len("".join(documents)), "sha256": hashlib.sha256(raw).hexdigest()}


def write(folder, documents=DOCUMENTS, tokenizer=None, of=None):
    shards.write(folder, documents, tokenizer or ByteTokenizer(), of or facts(documents), "Toy")


def kept(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Batches of some four documents, parts of some three batches."""
    monkeypatch.setattr(shards, "BATCH", 100)
    monkeypatch.setattr(shards, "PART", 300)


@FEW
@given(st.lists(st.text(max_size=50), max_size=20))
@pytest.mark.parametrize("kind", ["byte", "char", "word"])
def test_ids_are_those_of_each_document_by_itself(kind, tmp_path_factory, documents):
    known = "".join([*documents, "a"])
    tokenizer = {
        "byte": ByteTokenizer, "char": lambda: CharTokenizer.train(known),
        "word": lambda: WordTokenizer.train(known),
    }[kind]()  # fmt: skip
    folder = tmp_path_factory.mktemp("ids")
    expected = [i for document in documents for i in tokenizer.encode(document).ids]
    if expected:
        write(folder, documents, tokenizer)
        assert shards.read(folder).tolist() == expected


@pytest.mark.parametrize("batches", range(1, 14))  # all take 13
def test_killed_anywhere_it_goes_on_to_the_same_bytes(batches, tmp_path):
    write(tmp_path / "whole")
    try:
        write(tmp_path / "killed", tokenizer=Mortal(batches))
        died = False
    except Killed:
        died = True
    assert died == (batches < 13)
    lines = (tmp_path / "killed" / shards.PARTS).read_text().splitlines() if died else []
    left = Mortal(13 - 3 * len(lines))  # what is on disk is not encoded again
    write(tmp_path / "killed", tokenizer=left)
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


@pytest.mark.parametrize("fault", ["torn line", "lost bytes", "flipped byte", "no note"])
def test_what_a_kill_tore_is_made_again(fault, tmp_path):
    write(tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        write(folder, tokenizer=Mortal(8))
    ids, parts = folder / shards.IDS, folder / shards.PARTS
    assert len(parts.read_text().splitlines()) == 2
    if fault == "torn line":
        parts.write_text(parts.read_text()[:-20])
    elif fault == "lost bytes":
        ids.write_bytes(ids.read_bytes()[:500])
    elif fault == "flipped byte":
        ids.write_bytes(b"\xff" + ids.read_bytes()[1:])
    else:
        (folder / shards.BEGUN).unlink()
    write(folder)
    assert kept(folder) == kept(tmp_path / "whole")


def test_another_text_than_was_begun_is_refused(tmp_path):
    with pytest.raises(Killed):
        write(tmp_path, tokenizer=Mortal(8))
    other = ["changed", *DOCUMENTS[1:]]
    with pytest.raises(ValueError, match=r"^Toy has changed since its tokenization began .*remove"):
        write(tmp_path, other)
    with pytest.raises(ValueError, match="Toy has changed since its tokenization began"):
        write(tmp_path, other, of=facts(DOCUMENTS))  # what is read isn't what was announced
    write(tmp_path)


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Toy has changed since its tokenization began"):
        write(tmp_path, [*DOCUMENTS, "more"], of=facts(DOCUMENTS))
    assert not (tmp_path / shards.INDEX).exists()


@pytest.mark.parametrize(("words", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_take_two_bytes_where_they_fit(words, dtype, tmp_path):
    names = [f"w{i}" for i in range(words - 2)]
    tokenizer = WordTokenizer(["<unk>", "<eos>", *names])
    documents = [f"{names[0]} {names[-1]}\n"]
    write(tmp_path, documents, tokenizer)
    ids = shards.read(tmp_path)
    assert ids.dtype == np.dtype(dtype)
    assert ids.tolist() == [2, words - 1, 1]
    assert isinstance(ids, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1
    index = json.loads((tmp_path / shards.INDEX).read_text())
    assert [index["tokens"], len(index["parts"])] == [3, 1]
