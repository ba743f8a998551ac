"""Compiled programs outlive a command: where, whether, and how many of them."""

from pathlib import Path

import jax
import pytest

from normlab.commands import compile_cache

CHANGED = ("jax_compilation_cache_dir", *compile_cache.SETTINGS)


@pytest.fixture
def told(monkeypatch, tmp_path):
    """A process that was told nothing yet; what it then tells JAX, as a function."""
    before = {name: getattr(jax.config, name) for name in CHANGED}
    for name in (compile_cache.SWITCH, *(n.upper() for n in CHANGED)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    compile_cache.use.cache_clear()
    yield lambda: [getattr(jax.config, name) for name in CHANGED]
    compile_cache.use.cache_clear()
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize("word", [None, "", "on"])
def test_it_is_on_by_default_below_normlabs_cache(told, tmp_path, monkeypatch, word):
    if word is not None:
        monkeypatch.setenv(compile_cache.SWITCH, word)
    compile_cache.use()
    folder, seconds, size = told()
    assert folder == str(compile_cache.directory(tmp_path / "cache"))
    assert Path(folder).is_dir()
    assert (seconds, size) == (0, -1), "of small programs there are hundreds"


def test_what_the_environment_says_to_jax_stays(told, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "7")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    compile_cache.use()
    assert told()[1] == 7
    compile_cache.use.cache_clear()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compile_cache.use()
    assert told()[0] == str(tmp_path / "mine")


def test_off_is_off_and_another_word_is_an_error(told, monkeypatch):
    monkeypatch.setenv(compile_cache.SWITCH, "off")
    before = told()
    compile_cache.use()
    assert told() == before
    compile_cache.use.cache_clear()
    monkeypatch.setenv(compile_cache.SWITCH, "of")
    with pytest.raises(ValueError, match=r"unknown NORMLAB_XLA_CACHE 'of'\. Did you mean 'off'\?"):
        compile_cache.use()


def no_home(path):
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("home", [False, True])
def test_without_a_folder_there_is_one_notice_and_no_cache(
    told, tmp_path, monkeypatch, capsys, home
):
    if home:
        (tmp_path / "file").write_text("no folder")
        monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("NORMLAB_CACHE")
        monkeypatch.setattr(Path, "expanduser", no_home)
    for _ in range(2):  # each run of a sweep asks
        compile_cache.use()
    assert told()[0] is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compiled programs are not kept (NORMLAB_XLA_CACHE=off: no notice): ")
    assert ("file" if home else "home directory") in line


def test_a_full_cache_is_trimmed_when_a_command_starts(told, tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache, "ROOM", 0)
    old = tmp_path / "cache" / "xla" / "jaxlib-0.0.1-x86_64-0" / "entry"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"x")
    compile_cache.use()
    assert not old.exists()
