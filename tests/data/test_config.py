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
