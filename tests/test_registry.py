import sys

import pytest

from normlab.registry import Registry, UnknownNameError, choice


def test_registers_finds_and_lists():
    things = Registry("thing")
    things.register("b")(2)
    things.register("a")(1)
    assert list(things) == ["a", "b"]
    assert things["a"] == 1
    assert "b" in things
    assert len(things) == 2


def test_a_taken_name_is_refused():
    things = Registry("thing")
    things.register("a")(1)
    with pytest.raises(ValueError, match="thing 'a' is registered already"):
        things.register("a")(2)
    assert things["a"] == 1


def test_an_unknown_name_names_the_nearest():
    things = Registry("norm")
    things.register("rmsnorm")(1)
    with pytest.raises(UnknownNameError, match="unknown norm 'rmsnrom'. Did you mean 'rmsnorm'"):
        things["rmsnrom"]


def test_choice_passes_what_is_known_and_refuses_the_rest():
    assert choice("order", "pairwise", ["pairwise"]) == "pairwise"
    with pytest.raises(UnknownNameError, match="unknown order 'pairs'"):
        choice("order", "pairs", ["pairwise"])


def test_modules_of_the_package_are_imported_at_the_first_look_up(tmp_path, monkeypatch):
    package = tmp_path / "shelf"
    package.mkdir()
    (package / "__init__.py").write_text("from normlab.registry import Registry\n")
    (package / "things.py").write_text("import shelf\nshelf.things.register('new')(7)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import shelf

    shelf.things = Registry("thing", package="shelf")
    assert "shelf.things" not in sys.modules
    assert shelf.things["new"] == 7
