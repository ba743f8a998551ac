from pathlib import Path

import pytest

from normlab.data import DataConfig
from normlab.registry import UnknownNameError


def test_bad_values_name_the_nearest_right_one():
    with pytest.raises(UnknownNameError, match=r"data.corpus 'wikitext'.*Did you mean 'wikitext2'"):
        DataConfig(corpus="wikitext")
    with pytest.raises(UnknownNameError, match="data.tokenizer 'words'. Did you mean 'word'"):
        DataConfig(tokenizer="words")
    with pytest.raises(ValueError, match=r"^data.vocab_size = 256.*257"):
        DataConfig(vocab_size=256)
    assert DataConfig(vocab_size=257).vocab_size == 257
    with pytest.raises(ValueError, match="data.vocab_size = 500 means nothing to data.tokenizer=w"):
        DataConfig(tokenizer="word", vocab_size=500)


def test_without_a_home_what_to_say_instead_is_said(monkeypatch):
    def nobody(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NORMLAB_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(
        OSError, match="nothing here knows a home directory; say HOME=DIR, or NORML"
    ):
        DataConfig().cache_folder()


def test_folders_come_from_the_config_then_the_environment(monkeypatch):
    monkeypatch.setenv("NORMLAB_DATA", "/from/environment")
    monkeypatch.setenv("NORMLAB_CACHE", "/cache/of/environment")
    assert DataConfig().root_folder() == Path("/from/environment")
    assert DataConfig(root="/said").root_folder() == Path("/said")
    assert DataConfig().cache_folder() == Path("/cache/of/environment")
    assert DataConfig(cache="/said").cache_folder() == Path("/said")
    monkeypatch.delenv("NORMLAB_DATA")
    monkeypatch.delenv("NORMLAB_CACHE")
    assert DataConfig().root_folder() is None
    assert DataConfig().cache_folder() == Path.home() / ".cache" / "normlab"


def test_a_text_of_ones_own_says_where_and_no_other_does():
    with pytest.raises(
        ValueError, match=r"^data.path = None: expected a place to read from, data=t"
    ):
        DataConfig(corpus="text")
    with pytest.raises(ValueError, match="^data.name = None: .* data=hf data.name=NAME"):
        DataConfig(corpus="hf")
    with pytest.raises(ValueError, match="data.path = x: expected data=text beside it, and not"):
        DataConfig(corpus="hf", name="n", path="x")
    with pytest.raises(
        ValueError, match="data.column = x: expected data=text or data=hf beside it, and not"
    ):
        DataConfig(column="x")
    with pytest.raises(UnknownNameError, match="data.rows 'line'. Did you mean 'lines'"):
        DataConfig(corpus="hf", name="n", rows="line")


@pytest.mark.parametrize("split", ["90/5", "90/5/6", "a/b/c", "110/-5/-5", ""])
def test_shares_that_do_not_add_up_are_refused(split):
    with pytest.raises(ValueError, match=f"data.split = {split}: expected .*such as 90/5/5"):
        DataConfig(corpus="text", path="x", split=split)
    assert DataConfig(corpus="text", path="x", split="80/15/5").shares["valid"] == 0.15


def test_a_tokenizer_may_be_a_file():
    for name in ("hf:DIR", "gguf:a.gguf", "a/b.json"):
        assert DataConfig(tokenizer=name).tokenizer_is_file
    with pytest.raises(
        ValueError, match="means nothing to data.tokenizer=byte, whose .* 256 bytes"
    ):
        DataConfig(tokenizer="byte", vocab_size=300)
    with pytest.raises(ValueError, match="tokenizer=a.json, whose vocabulary is its own"):
        DataConfig(tokenizer="a.json", vocab_size=300)
