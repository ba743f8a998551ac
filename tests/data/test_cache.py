import json
import multiprocessing
import os
import threading

import pytest

from normlab.data.cache import LOCK, MANIFEST, cached, trim


def write(content: str):
    return lambda folder: (folder / "a.txt").write_text(content)


def never(folder):
    raise AssertionError("made again")


def test_made_once_for_each_setting_and_found_again(tmp_path):
    folder = cached(tmp_path, "thing", {"text": "x", "size": 3}, write("one"))
    assert folder.parent == tmp_path / "thing"
    assert (folder / "a.txt").read_text() == "one"
    assert cached(tmp_path, "thing", {"size": 3, "text": "x"}, never) == folder
    others = [{"text": "y", "size": 3}, {"text": "x", "size": 4}, {}]
    found = {cached(tmp_path, "thing", s, write("one")) for s in others}
    assert len(found | {folder}) == 4


@pytest.mark.parametrize("damage", ["file", "missing", "no manifest", "other manifest", "garbage"])
def test_a_damaged_folder_is_made_anew_with_a_notice(tmp_path, caplog, damage):
    folder = cached(tmp_path, "thing", {"size": 3}, write("one"))
    manifest = json.loads((folder / MANIFEST).read_text())
    if damage == "file":
        (folder / "a.txt").write_text("two")
    elif damage == "missing":
        (folder / "a.txt").unlink()
    elif damage == "no manifest":
        (folder / MANIFEST).unlink()
    elif damage == "other manifest":
        (folder / MANIFEST).write_text(json.dumps(manifest | {"made_from": {"size": 4}}))
    else:
        (folder / MANIFEST).write_text("[1")
    assert cached(tmp_path, "thing", {"size": 3}, write("three")) == folder
    assert (folder / "a.txt").read_text() == "three"
    assert "can't be used" in caplog.text
    caplog.clear()
    cached(tmp_path, "thing", {"size": 3}, never)
    assert not caplog.text


def test_a_failed_make_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "a.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "thing", {}, fail)
    assert [f.name for f in (tmp_path / "thing").iterdir()] == [LOCK]


def test_where_nothing_can_be_written_the_variable_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="say NORMLAB_CACHE=DIR .*file/thing"):
        cached(tmp_path / "file", "thing", {}, never)


def race(root, barrier, number):
    for turn in range(20):
        barrier.wait()
        folder = cached(root, "thing", {"turn": turn}, write(f"{number}" * 10_000))
        assert len(set((folder / "a.txt").read_text())) == 1


@pytest.mark.extended
def test_processes_that_race_all_find_one_whole_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    racers = [context.Process(target=race, args=(tmp_path, barrier, n)) for n in range(3)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert len([f for f in (tmp_path / "thing").iterdir() if f.name != LOCK]) == 20


def test_of_threads_that_race_one_makes_the_folder(tmp_path):
    found, made = [], []

    def make(fresh):
        made.append(fresh)
        write("one")(fresh)

    def ask():
        found.append(cached(tmp_path, "thing", {}, make))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found), len(set(found)), len(made)] == [4, 1, 1]


def test_what_was_used_least_lately_goes_first(tmp_path):
    for age, name in enumerate(["new", "older/old", "older/oldest"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 10)
        os.utime(path, (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "older" / "oldest", (2e9, 0))  # was read today
    trim(tmp_path, 30)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 3
    trim(tmp_path, 29)
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"new", "oldest"}
    trim(tmp_path, 0)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
