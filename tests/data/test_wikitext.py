import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from normlab.data import CorpusDamagedError, CorpusUnavailableError, wikitext

ROOT = Path(os.environ["NORMLAB_DATA"]) if "NORMLAB_DATA" in os.environ else None
REAL = pytest.mark.skipif(ROOT is None, reason="NORMLAB_DATA is not set")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LINES = [" \n", " = Title = \n", " \n", " Some <unk> words\u2028 and\x85 é . \n"]


@pytest.fixture
def facts(monkeypatch):
    """LINES are all three splits of both sets."""
    text = "".join(LINES)
    known = wikitext.Facts(0, 0, 0, hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.setattr(wikitext, "FACTS", dict.fromkeys(wikitext.FACTS, known))
    return text


def publish(folder: Path, suffix: str, splits=("train", "valid", "test")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits:
        (folder / f"wiki.{split}.{suffix}").write_bytes("".join(LINES).encode())


def publish_parquet(folder: Path, rows: dict[str, list[str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True)
    for split, lines in rows.items():
        file = folder / f"{wikitext.HUB_NAMES[split]}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": lines}), file)


@pytest.fixture(autouse=True)
def ask_the_hub_again():
    wikitext.unanswered.cache_clear()
    yield
    wikitext.unanswered.cache_clear()


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty Hugging Face cache and a hub that can't be reached."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))

    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    return tmp_path


# --- a local folder


@pytest.mark.parametrize("name", ["wikitext2", "wikitext2-raw"])
@pytest.mark.parametrize("inner", [True, False])
def test_a_folder_of_both_sets_or_one_of_them(name, inner, tmp_path, facts):
    for n, config in wikitext.CONFIGS.items():
        publish(tmp_path / config, wikitext.SUFFIXES[n])
    read = wikitext.find(name, tmp_path / wikitext.CONFIGS[name] if inner else tmp_path)
    assert [read(split) for split in ("train", "valid", "test")] == [facts] * 3


@pytest.mark.parametrize("sign", ["[2]", "a*b", "**", "?", "{a,b}"])
def test_a_folder_whose_name_is_a_pattern(sign, tmp_path, facts):
    for other in ("aXb", "X", "2", "a"):  # which it would match
        publish(tmp_path / other / "a", "tokens")
        (tmp_path / other / "a" / "wiki.train.tokens").write_text("another text")
    publish(tmp_path / sign / "a", "tokens")
    publish_parquet(tmp_path / sign / "wikitext-2-v1", dict.fromkeys(wikitext.HUB_NAMES, LINES))
    for root in (tmp_path / sign, tmp_path / sign / "a"):
        read = wikitext.find("wikitext2", root)
        assert [read(split) for split in ("train", "valid", "test")] == [facts] * 3


@pytest.mark.parametrize("blank", [" \n", ""])
def test_a_copy_of_the_hubs_folder(tmp_path, facts, blank):
    assert " \n" in LINES
    lines = [blank if line == " \n" else line for line in LINES]
    rows = dict.fromkeys(wikitext.HUB_NAMES, lines)
    publish_parquet(tmp_path / "wikitext-2-v1", rows)
    read = wikitext.find("wikitext2", tmp_path)
    assert [read(split) for split in ("train", "valid", "test")] == [facts] * 3


def test_a_missing_split_says_so(tmp_path, facts):
    publish(tmp_path / "wikitext-2-raw-v1", "raw", ["valid", "test"])
    read = wikitext.find("wikitext2-raw", tmp_path)
    assert read("test") == facts
    with pytest.raises(CorpusUnavailableError, match=r"train split.*has valid, test.*train\.raw"):
        read("train")


def test_another_text_is_refused(tmp_path, facts):
    publish(tmp_path / "wikitext-2-v1", "tokens")
    file = tmp_path / "wikitext-2-v1" / "wiki.valid.tokens"
    file.write_bytes(file.read_bytes().replace(b"Some", b"Same"))
    read = wikitext.find("wikitext2", tmp_path)
    assert read("test") == facts
    with pytest.raises(CorpusDamagedError, match="valid split of wikitext2 is not the published"):
        read("valid")


def test_a_text_of_another_encoding_is_named(tmp_path, facts):
    publish(tmp_path, "tokens")
    (tmp_path / "wiki.test.tokens").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(CorpusDamagedError, match=rf"{tmp_path}/wiki.test.tokens: not UTF-8"):
        wikitext.find("wikitext2", tmp_path)("test")


def test_a_local_text_needs_no_folder_of_its_reader(tmp_path, facts, monkeypatch):
    import datasets

    publish(tmp_path, "tokens")
    file = tmp_path / "a file"  # where no folder can be made, as in a home that is read-only
    file.touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", file / "below")
    assert wikitext.find("wikitext2", tmp_path)("test") == facts


@pytest.mark.parametrize("root", [None, "missing", "empty"])
def test_what_is_nowhere_is_an_error_with_three_ways(root, no_network):
    (no_network / "empty").mkdir()
    with pytest.raises(CorpusUnavailableError) as error:
        wikitext.find("wikitext2", no_network / root if root else None)
    message = str(error.value)
    for way in ("NORMLAB_DATA", "data.root", "HF_HOME", "(3) let this machine reach the hub"):
        assert way in message
    assert "no network in this test" in message
    assert {None: "not set", "missing": "no folder", "empty": "no wikitext2 in"}[root] in message


# --- the Hugging Face cache


def snapshot(hub: Path) -> Path:
    """An entry of the hub's cache, as `huggingface_hub` lays it out."""
    repository = hub / "datasets--Salesforce--wikitext"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


def test_downloaded_files_serve_without_the_hub(no_network, facts):
    folder = snapshot(no_network / "hub")
    publish_parquet(folder / "wikitext-2-v1", dict.fromkeys(wikitext.HUB_NAMES, LINES))
    assert wikitext.find("wikitext2", None)("valid") == facts
    with pytest.raises(CorpusUnavailableError):  # the other set wasn't downloaded
        wikitext.find("wikitext2-raw", None)


def test_half_a_download_does_not_serve(no_network):
    publish_parquet(snapshot(no_network / "hub") / "wikitext-2-v1", {"valid": LINES})
    with pytest.raises(CorpusUnavailableError):
        wikitext.find("wikitext2", None)


def test_what_load_dataset_has_left_serves_without_the_hub(no_network, facts):
    from datasets import load_dataset

    publish_parquet(no_network / "rows", dict.fromkeys(wikitext.HUB_NAMES, LINES))
    files = {
        hub: str(no_network / "rows" / f"{hub}-00000-of-00001.parquet")
        for hub in wikitext.HUB_NAMES.values()
    }
    load_dataset("parquet", data_files=files, cache_dir=str(no_network / "made"))
    (made,) = (no_network / "made" / "parquet").glob("*/*/*/dataset_info.json")
    # The same entry under the names that the hub's data set gives it.
    info = json.loads(made.read_text()) | {
        "config_name": "wikitext-2-v1", "dataset_name": "wikitext",
    }  # fmt: skip
    made.write_text(json.dumps(info))
    for file in made.parent.glob("parquet-*.arrow"):
        file.rename(file.with_name(file.name.replace("parquet", "wikitext", 1)))
    entry = no_network / "datasets" / "Salesforce___wikitext" / "wikitext-2-v1" / "0.0.0" / COMMIT
    entry.parent.mkdir(parents=True)
    made.parent.rename(entry)
    read = wikitext.find("wikitext2", None)
    assert [read(split) for split in ("train", "valid", "test")] == [facts] * 3


# --- the hub


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as downloading one folder takes."""

    folder: Path

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        files = sorted(self.folder.glob("*.parquet"))
        if path.startswith(api := f"/api/datasets/{wikitext.HUB}"):
            names = [f"wikitext-2-v1/{f.name}" for f in files]
            answer = {"id": wikitext.HUB, "sha": COMMIT,
                      "siblings": [{"rfilename": name} for name in names]}  # fmt: skip
            tree = [{"type": "file", "path": n, "size": 1, "oid": COMMIT} for n in names]
            listed = path.startswith(f"{api}/tree/")
            return self.answer(json.dumps(tree if listed else answer).encode())
        wanted = [f for f in files if path.endswith(f"/resolve/{COMMIT}/wikitext-2-v1/{f.name}")]
        return self.answer(wanted[0].read_bytes()) if wanted else self.answer(b"", 404)

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def hub(folder: Path):
    handler = type("Handler", (Hub,), {"folder": folder})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def load_elsewhere(home: Path, endpoint: str, **environment) -> subprocess.CompletedProcess:
    """`load_corpus` of wikitext2 in a process of its own; prints its hashes."""
    code = (
        "from normlab.data import DataConfig, load_corpus\n"
        "corpus = load_corpus(DataConfig(corpus='wikitext2'))\n"
        "print(*[corpus.sha256(split) for split in ('train', 'valid', 'test')])\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "NORMLAB_"))}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | settings | environment,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.system
def test_a_hub_with_another_text_is_refused(tmp_path):
    publish_parquet(tmp_path / "served", dict.fromkeys(wikitext.HUB_NAMES, LINES))
    with hub(tmp_path / "served") as endpoint:
        result = load_elsewhere(tmp_path / "home", endpoint)
    assert "CorpusDamagedError: the train split of wikitext2" in result.stderr


@pytest.mark.system
@REAL
def test_the_hubs_rows_are_the_files_and_serve_offline_afterwards(tmp_path):
    assert ROOT is not None
    rows = {}
    for split in wikitext.HUB_NAMES:
        file = ROOT / "wikitext-2-v1" / f"wiki.{split}.tokens"
        rows[split] = [line + "\n" for line in file.read_bytes().decode().split("\n")[:-1]]
    publish_parquet(tmp_path / "served", rows)
    expected = [wikitext.FACTS["wikitext2", split].sha256 for split in rows]
    with hub(tmp_path / "served") as endpoint:
        assert load_elsewhere(tmp_path / "home", endpoint).stdout.split() == expected
    offline = load_elsewhere(tmp_path / "home", endpoint, HF_HUB_OFFLINE="1")
    assert offline.stdout.split() == expected
    gone = load_elsewhere(tmp_path / "home", endpoint)
    assert gone.stdout.split() == expected


def test_a_download_is_checked_and_one_that_fails_is_unavailable(no_network, facts, monkeypatch):
    import huggingface_hub

    found, cut_off = huggingface_hub.snapshot_download, True

    def download(repo, *, local_files_only=False, **asked):
        if local_files_only:
            return found(repo, local_files_only=True, **asked)
        if cut_off:
            raise ConnectionError("cut off")
        assert asked["allow_patterns"] == "wikitext-2-v1/*"
        rows = dict.fromkeys(wikitext.HUB_NAMES, LINES) | {"valid": ["another\n"]}
        publish_parquet(snapshot(no_network / "hub") / "wikitext-2-v1", rows)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: "there")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CorpusUnavailableError, match="download failed .ConnectionError: cut off"):
        wikitext.find("wikitext2", None)
    cut_off = False
    read = wikitext.find("wikitext2", None)
    assert read("test") == facts
    with pytest.raises(CorpusDamagedError, match="the valid split of wikitext2"):
        read("valid")


def test_a_hub_that_never_answers_is_asked_once_and_given_up(monkeypatch, no_network):
    import huggingface_hub

    released, asked = threading.Event(), []

    def waits(*_, **__):
        asked.append(1)
        released.wait(20)

    monkeypatch.setattr(wikitext, "HUB_PATIENCE", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", waits)
    for _ in range(2):
        with pytest.raises(CorpusUnavailableError, match=r"no answer in 0\.2 s"):
            wikitext.find("wikitext2", None)
    assert asked == [1]
    released.set()


@pytest.mark.system
def test_a_socket_that_answers_nothing_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = load_elsewhere(tmp_path / "home", endpoint)  # its limit is 60 s
    assert "CorpusUnavailableError" in result.stderr


# --- facts


@REAL
@pytest.mark.parametrize(("name", "split"), wikitext.FACTS)
def test_facts_are_those_of_the_files(name, split):
    assert ROOT is not None
    file = ROOT / wikitext.CONFIGS[name] / f"wiki.{split}.{wikitext.SUFFIXES[name]}"
    raw, facts = file.read_bytes(), wikitext.FACTS[name, split]
    words = len(raw.decode().split())
    assert facts == wikitext.Facts(
        len(raw), raw.count(b"\n"), words + raw.count(b"\n"), hashlib.sha256(raw).hexdigest()
    )
    assert wikitext.find(name, ROOT)(split).encode() == raw


def test_the_error_gives_both_counts():
    with pytest.raises(CorpusDamagedError, match=r"2 lines, 5 tokens; expected .*3,760 lines"):
        wikitext.verify("wikitext2", "valid", "a b\nc\n")
    wikitext.verify("wikitext2-raw", "train", "anything")  # nothing is known of it
