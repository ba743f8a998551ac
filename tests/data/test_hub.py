"""Documents through `datasets`: folders as on the hub and from `save_to_disk`, streamed or not."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from normlab.data import CorpusUnavailableError, DataConfig, hub, load_corpus

TEXTS = [f"document {i}" for i in range(60)]


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    """No bar, and no cache but here."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def corpus(folder, **fields):
    config = {"corpus": "hf", "name": str(folder), "cache": str(folder.parent / "cache")}
    return load_corpus(DataConfig(**config | fields))


def shards(folder, **splits):
    folder.mkdir()
    for name, texts in splits.items():
        pq.write_table(pa.table({"text": texts}), folder / f"{name}-00000-of-00001.parquet")
    return folder


def test_a_saved_folder_and_files_are_one_text_streamed_or_not(tmp_path, quiet):
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    rows.save_to_disk(tmp_path / "saved")
    saved = corpus(tmp_path / "saved")
    assert {s: f["documents"] for s, f in saved.parts.facts.items() if f["documents"]}.keys() == {
        "train", "valid", "test",
    }  # fmt: skip
    assert sum(f["documents"] for f in saved.parts.facts.values()) == 60
    files = shards(tmp_path / "files", train=TEXTS)
    for streaming in (False, True):
        assert corpus(files, streaming=streaming).parts.facts == saved.parts.facts
    datasets.DatasetDict({"train": rows, "validation": rows.select([1, 0])}).save_to_disk(
        tmp_path / "several"
    )
    several = corpus(tmp_path / "several")
    assert several.text("valid") == "document 1\n\ndocument 0\n\n"
    assert several.text("test") == saved.text("test")


def test_a_saved_folder_that_has_changed_is_another_text(tmp_path, quiet):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "saved")
    first = corpus(tmp_path / "saved").name
    datasets.Dataset.from_dict({"text": [*TEXTS, "one more"]}).save_to_disk(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path / "saved2")
    (tmp_path / "saved").rename(tmp_path / "gone")
    (tmp_path / "saved2").rename(tmp_path / "saved")
    assert corpus(tmp_path / "saved").name != first


def test_rows_of_lines_are_the_file_again(tmp_path, quiet):
    text = "a b\nc\n\nd é\n"
    folder = shards(tmp_path / "files", train=text.splitlines())
    lines = corpus(folder, rows="lines", split="100/0/0")
    assert list(lines.documents("train")) == ["a b\nc\n\n", "d é\n"]
    assert lines.text("train") == text


def test_wikitexts_blank_rows_are_its_blank_lines(tmp_path, quiet):
    rows = [" = A = \n", "", " b c \n"]
    (tmp_path / "x").mkdir()
    folder = shards(tmp_path / "x" / "wikitext-103-v1", train=rows, validation=rows, test=rows)
    named = {"name": str(folder.parent), "config": "wikitext-103-v1", "rows": "lines"}
    assert corpus(folder, **named).text("test") == " = A = \n \n b c \n"


def test_what_cannot_be_had_says_how_to_get_it(monkeypatch):
    def offline(*args, **kwargs):
        assert datasets.config.HF_HUB_OFFLINE  # or it would ask six times, for 24 s
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", offline)
    config = DataConfig(corpus="hf", name="a/b", config="c")
    with pytest.raises(CorpusUnavailableError) as error:
        hub.source(config)
    for way in (
        "ConnectionError: no answer (OfflineModeIsEnabled: ",
        "data.name=DIR",
        "HF_HOME",
        '("a/b", "c")',
    ):
        assert way in str(error.value)
    assert not datasets.config.HF_HUB_OFFLINE
