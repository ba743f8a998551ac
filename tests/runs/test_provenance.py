import json
import subprocess

from normlab.runs.provenance import PACKAGES, code_state, provenance, source_hash


def test_it_names_code_packages_and_device_and_fits_into_json():
    papers = json.loads(json.dumps(provenance()))
    assert set(papers["packages"]) == set(PACKAGES)
    assert papers["packages"]["jax"][0].isdigit()
    assert "cpu" in papers["device"] or "gpu" in papers["device"]
    assert papers["code"] == code_state()


def test_outside_a_checkout_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("normlab.__file__", str(tmp_path / "normlab" / "__init__.py"))
    (tmp_path / "normlab").mkdir()
    assert code_state() == "not a checkout"


def test_the_commit_is_that_of_our_own_checkout(monkeypatch, tmp_path):
    """Neither of a repository that we are installed into, nor of one that the environment names."""
    ours = code_state()
    for word in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *word], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert code_state() == ours
    inside = tmp_path / "site-packages" / "normlab"
    inside.mkdir(parents=True)
    monkeypatch.setattr("normlab.__file__", str(inside / "__init__.py"))
    assert code_state() == "not a checkout"


def test_the_hash_of_sources_follows_every_file_of_the_library(monkeypatch, tmp_path):
    monkeypatch.setattr("normlab.__file__", str(tmp_path / "normlab" / "__init__.py"))
    for name in ("normlab/a.py", "normlab/in/b.py", "train/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    found = [source_hash()]
    for name in ("train/c.py", "normlab/in/b.py"):
        (tmp_path / name).write_text("x = 2\n")
        found.append(source_hash())
    (tmp_path / "normlab" / "a.py").rename(tmp_path / "normlab" / "e.py")
    found.append(source_hash())
    assert found[0] == found[1]
    assert len(set(found)) == 3
