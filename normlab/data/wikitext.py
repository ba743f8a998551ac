"""WikiText-2: where it is found, how it is read, and how it is known to be the real one.

S. Merity, C. Xiong, J. Bradbury, R. Socher, *Pointer Sentinel Mixture Models*, 2016.
"""

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

Reader = Callable[[str], str]
"""A split's name to its whole text."""

HUB = "Salesforce/wikitext"
CONFIGS = {"wikitext2": "wikitext-2-v1", "wikitext2-raw": "wikitext-2-raw-v1"}
SUFFIXES = {"wikitext2": "tokens", "wikitext2-raw": "raw"}
HUB_NAMES = {"train": "train", "valid": "validation", "test": "test"}
HUB_PATIENCE = 5.0  # seconds for the hub's first answer


class CorpusUnavailableError(OSError):
    """A text that was asked for and can't be had here; the message says how to get it."""


class CorpusDamagedError(ValueError):
    """A file that calls itself WikiText-2 and isn't, byte for byte."""


class Facts(NamedTuple):
    """What a split's canonical file is known by."""

    bytes: int
    lines: int
    tokens: int  # words between white space, and one <eos> for each line
    sha256: str


FACTS = {
    ("wikitext2", "train"): Facts(
        10_797_148, 36_718, 2_088_628,
        "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    ),
    ("wikitext2", "valid"): Facts(
        1_121_681, 3_760, 217_646,
        "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    ),
    ("wikitext2", "test"): Facts(
        1_256_449, 4_358, 245_569,
        "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
    ),
    ("wikitext2-raw", "valid"): Facts(
        1_146_846, 3_760, 217_646,
        "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    ),
    ("wikitext2-raw", "test"): Facts(
        1_290_590, 4_358, 245_569,
        "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    ),
}  # fmt: skip


def find(name: str, root: Path | None) -> Reader:
    """A reader for `name`: from `root`, else the Hugging Face cache, else the hub.

    The reader checks what it reads against `FACTS`; the raw training split has none to check.

    Raises:
        CorpusUnavailableError: it is in none of the three.
    """
    tried = []
    for place, source in (
        ("data.root or NORMLAB_DATA", lambda: _in_folder(name, root)),
        ("the Hugging Face cache", lambda: _in_hub_cache(name) or _in_datasets_cache(name)),
        (f"the hub ({HUB})", lambda: _on_hub(name)),
    ):
        try:
            if read := source():
                log.info("%s comes from %s", name, place)
                return _checked(name, read)
            tried.append(f"{place}: not there")
        except CorpusUnavailableError as error:
            tried.append(f"{place}: {error}")
    raise CorpusUnavailableError(_three_ways(name, tried))


def _three_ways(name: str, tried: list[str]) -> str:
    config, suffix = CONFIGS[name], SUFFIXES[name]
    return (
        f"{name} can't be had here. Tried " + "; ".join(tried) + ". Three ways to get it: "
        f"(1) set data.root=DIR or NORMLAB_DATA=DIR, where DIR holds "
        f"{config}/wiki.{{train,valid,test}}.{suffix}; "
        f"(2) fill the Hugging Face cache on a machine that has the hub "
        f'(`datasets.load_dataset("{HUB}", "{config}")`) and point HF_HOME at it; '
        f"(3) let this machine reach the hub. data=embedded needs none of them."
    )


# --- from a local folder


def _in_folder(name: str, root: Path | None) -> Reader | None:
    if root is None:
        raise CorpusUnavailableError("not set")
    if not root.is_dir():
        raise CorpusUnavailableError(f"no folder {root}")
    folder = next((f for f in (root / CONFIGS[name], root) if _splits(name, f)), None)
    if folder is None:
        raise CorpusUnavailableError(f"no {name} in {root}")
    return lambda split: _read_files(_files(name, folder, split))


def _splits(name: str, folder: Path) -> list[str]:
    return [split for split in HUB_NAMES if _candidates(name, folder, split)]


def _candidates(name: str, folder: Path, split: str) -> list[Path]:
    """The file as published, or the hub's Parquet files where the folder's name tells which."""
    published = folder / f"wiki.{split}.{SUFFIXES[name]}"
    if published.is_file():
        return [published]
    if folder.name != CONFIGS[name]:
        return []
    return sorted(folder.glob(f"{HUB_NAMES[split]}-*.parquet"))


def _files(name: str, folder: Path, split: str) -> list[Path]:
    if files := _candidates(name, folder, split):
        return files
    have = ", ".join(_splits(name, folder))
    raise CorpusUnavailableError(
        f"the {split} split of {name} is not in {folder}, which has {have}: "
        f"put wiki.{split}.{SUFFIXES[name]} there (on the hub: {HUB}, {CONFIGS[name]}), "
        "or unset data.root and NORMLAB_DATA to use the Hugging Face cache or the hub"
    )


def _read_files(files: list[Path]) -> str:
    found = [(file, file.stat()) for file in files]
    return _read(tuple((file, about.st_mtime_ns, about.st_size) for file, about in found))


@lru_cache(len(HUB_NAMES))
def _read(known: tuple[tuple[Path, int, int], ...]) -> str:
    """The text of some files as they stand: a sweep's later runs don't read them again."""
    files = [file for file, *_ in known]
    try:
        if files[0].suffix != ".parquet":
            return "".join(file.read_bytes().decode() for file in files)
        return _joined(rows for file in files for rows in _rows(file))
    except UnicodeDecodeError as error:
        raise CorpusDamagedError(
            f"{', '.join(map(str, files))}: not UTF-8 ({error.reason}); "
            "expected the published file, or a text that is saved as UTF-8"
        ) from None


def _rows(file: Path) -> Iterator[list[str]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as opened:
        for batch in opened.iter_batches(columns=["text"]):
            yield batch["text"].to_pylist()


BLANK = " \n"
"""A blank line of the published files, which some copies of the hub's rows give as ""."""


def _joined(batches: Iterable[list[str]]) -> str:
    return "".join(line or BLANK for batch in batches for line in batch)


# --- from the Hugging Face cache and the hub


def _in_hub_cache(name: str) -> Reader | None:
    """The Parquet files that any earlier download left, without a look at the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = snapshot_download(HUB, repo_type="dataset", local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    folder = Path(snapshot) / CONFIGS[name]
    if len(_splits(name, folder)) < len(HUB_NAMES):
        return None
    return lambda split: _read_files(_files(name, folder, split))


def _in_datasets_cache(name: str) -> Reader | None:
    """The Arrow files that an earlier `load_dataset` made, without a look at the network."""
    from huggingface_hub.constants import HF_HOME

    kept = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
    if not any(kept.glob("*wikitext")):  # the import takes a second
        return None
    from datasets.packaged_modules.cache.cache import Cache

    try:
        builder = Cache(repo_id=HUB, dataset_name="wikitext", config_name=CONFIGS[name],
                        version="auto", hash="auto")  # fmt: skip
    except ValueError:
        return None
    return lambda split: _joined([builder.as_dataset(split=HUB_NAMES[split])["text"][:]])


def _on_hub(name: str) -> Reader | None:
    from huggingface_hub import snapshot_download

    if reason := unanswered(HUB):
        raise CorpusUnavailableError(reason)
    try:
        # Of no stated revision, or the cache wouldn't know it as the newest when offline.
        snapshot_download(HUB, repo_type="dataset", allow_patterns=f"{CONFIGS[name]}/*")
    except Exception as error:  # whatever stops the download, the text can't be had
        raise CorpusUnavailableError(f"the download failed ({_short(error)})") from error
    return _in_hub_cache(name)


@cache
def unanswered(repo: str) -> str | None:
    """Why the hub can't be asked for a data set, within seconds; None if it has it.

    `load_dataset` on its own asks a dead hub six times, for more than 20 s. A socket's timeout
    doesn't bound the name look-up, so the question is asked in a thread that may be left behind.
    It is asked once: a sweep's later runs don't wait for it again.
    """
    answer: list[object] = []

    def ask() -> None:
        from huggingface_hub import HfApi

        try:
            answer.append(HfApi().dataset_info(repo, timeout=HUB_PATIENCE))
        except Exception as error:  # unreachable, offline mode, a proxy's page, no such host, ...
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE)
    if not answer:
        return f"no answer in {HUB_PATIENCE:g} s"
    return f"no answer ({_short(answer[0])})" if isinstance(answer[0], Exception) else None


def _short(error: object) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


# --- the check


def _checked(name: str, read: Reader) -> Reader:
    def reader(split: str) -> str:
        text = read(split)
        verify(name, split, text)
        return text

    return reader


def verify(name: str, split: str, text: str) -> None:
    """Compare a split's text with what is known of it.

    Raises:
        CorpusDamagedError: another hash; the message gives both hashes and the counts.
    """
    facts = FACTS.get((name, split))
    got = hashlib.sha256(text.encode()).hexdigest()
    if facts is None or got == facts.sha256:
        return
    lines = text.count("\n")
    raise CorpusDamagedError(
        f"the {split} split of {name} is not the published one: SHA-256 {got}, "
        f"{len(text.encode()):,} bytes, {lines:,} lines, {len(text.split()) + lines:,} tokens; "
        f"expected {facts.sha256}, {facts.bytes:,} bytes, {facts.lines:,} lines, "
        f"{facts.tokens:,} tokens. Get the file again"
    )
