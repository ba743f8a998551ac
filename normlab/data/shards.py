"""Documents as one long row of tokens on disk, written in parts that outlive a kill."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Integer

from normlab.config import require
from normlab.data.tokenizer import Tokenizer, batches
from normlab.progress import Progress

IDS, INDEX, BEGUN, PARTS = "ids.bin", "index.json", "begun.json", "parts.jsonl"
BATCH = 1 << 20
"""Characters that are encoded together."""
PART = 1 << 24
"""Characters after which what was written is noted in `PARTS`, with its hash."""


def write(
    folder: Path, documents: Iterable[str], tokenizer: Tokenizer, text: Mapping[str, Any], name: str
) -> None:
    """Write the ids of documents, each encoded by itself, and an index with their hashes.

    What an earlier call left in `folder` is checked, and goes on after its last whole part: the
    files are the same bytes as without the interruption. Ids are uint16 where the vocabulary
    allows, else uint32. Memory is bounded by `BATCH` and the longest document.

    Args:
        folder: is made, and holds `IDS` and `INDEX` in the end.
        documents: those of a split.
        tokenizer: any.
        text: what is known of the split, `characters` and `sha256`.
        name: how messages call it.

    Raises:
        ValueError: the documents aren't those that it was begun with, or aren't `text`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _begin(folder, str(text["sha256"]), name)
    parts, rest, whole = _whole_parts(folder), iter(documents), hashlib.sha256()
    for part in parts:
        own = hashlib.sha256()
        for document in islice(rest, part["documents"]):
            own.update(raw := document.encode())
            whole.update(raw)
        require(own.hexdigest() == part["text"], _changed(folder, name, part["text"], own))
    with _progress(name, parts, text["characters"]) as told, (folder / IDS).open("ab") as ids:
        for part in _parts(_encoded(rest, tokenizer), ids, dtype_of(tokenizer), whole):
            _append(folder / PARTS, part)
            parts.append(part)
            if told is not None:
                told.update(_sum(parts, "characters"), f"{_sum(parts, 'tokens'):,} tokens")
    require(whole.hexdigest() == text["sha256"], _changed(folder, name, text["sha256"], whole))
    index = {"dtype": dtype_of(tokenizer), "tokens": _sum(parts, "tokens"), "parts": parts}
    (folder / INDEX).write_text(json.dumps(index, indent=1))
    for file in (BEGUN, PARTS):
        (folder / file).unlink()


def read(folder: Path) -> Integer[np.ndarray, " tokens"]:
    """The ids that `write` left in `folder`, mapped into memory, read-only."""
    index = json.loads((folder / INDEX).read_text())
    return np.memmap(folder / IDS, index["dtype"], "r", shape=(index["tokens"],))


def dtype_of(tokenizer: Tokenizer) -> str:
    """The least type that holds every id: uint16, or uint32, little-endian."""
    return "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"


# --- what an earlier call left


def _begin(folder: Path, sha256: str, name: str) -> None:
    """Note which text is begun, or refuse another one than was."""
    file = folder / BEGUN
    if not file.exists():
        for left in (IDS, PARTS):  # without the note nobody knows of what
            (folder / left).unlink(missing_ok=True)
        file.write_text(json.dumps({"text": sha256}))
        return
    then = json.loads(file.read_text())["text"]
    require(then == sha256, _told(folder, name, then, sha256))


def _whole_parts(folder: Path) -> list[dict[str, Any]]:
    """The parts that are there as they were noted; what comes after them is cut off."""
    (folder / IDS).touch()
    lines = (folder / PARTS).read_text().splitlines() if (folder / PARTS).exists() else []
    kept: list[dict[str, Any]] = []
    with (folder / IDS).open("r+b") as ids:
        end = 0
        for line in lines:
            try:
                part = json.loads(line)
            except ValueError:  # the kill came while it was written
                break
            raw = ids.read(part["bytes"])
            if hashlib.sha256(raw).hexdigest() != part["ids"]:
                break
            kept.append(part)
            end += part["bytes"]
        ids.truncate(end)
    (folder / PARTS).write_text("".join(json.dumps(part) + "\n" for part in kept))
    return kept


def _changed(folder: Path, name: str, then: str, now: Any) -> str:
    return _told(folder, name, then, now.hexdigest())


def _told(folder: Path, name: str, then: str, now: str) -> str:
    return (
        f"{name} has changed since its tokenization began (SHA-256 {then[:12]}… then, "
        f"{now[:12]}… now): put it back, or remove {folder} to tokenize it as it is"
    )


# --- new parts


Encoded = tuple[list[str], list[Integer[np.ndarray, " tokens"]]]
"""Documents, and the ids of each."""


def _encoded(documents: Iterator[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Batches with their ids: one is encoded while the next is read and the last is written."""
    with ThreadPoolExecutor(1) as worker:
        before: tuple[list[str], Future] | None = None
        for batch in batches(documents, BATCH):
            after = batch, worker.submit(tokenizer.encode_each, batch)
            if before is not None:
                yield before[0], before[1].result()
            before = after
        if before is not None:
            yield before[0], before[1].result()


def _parts(
    encodings: Iterable[Encoded], ids: IO[bytes], dtype: str, whole: Any
) -> Iterator[dict[str, Any]]:
    """Append the ids of each batch; a part's line once it is written."""

    def fresh() -> tuple[dict[str, int], Any, Any]:
        names = ("documents", "characters", "tokens", "bytes")
        return dict.fromkeys(names, 0), hashlib.sha256(), hashlib.sha256()

    def closed() -> dict[str, Any]:
        ids.flush()
        return counts | {"text": text.hexdigest(), "ids": row.hexdigest()}

    counts, text, row = fresh()
    for documents, encoded in encodings:
        raw = "".join(documents).encode()
        tokens = np.concatenate(encoded).astype(dtype).tobytes()
        ids.write(tokens)
        for digest, content in ((text, raw), (whole, raw), (row, tokens)):
            digest.update(content)
        counts["documents"] += len(documents)
        counts["characters"] += sum(map(len, documents))
        counts["tokens"] += sum(map(len, encoded))
        counts["bytes"] += len(tokens)
        if counts["characters"] >= PART:
            yield closed()
            counts, text, row = fresh()
    if counts["documents"]:
        yield closed()


def _append(file: Path, part: Mapping[str, Any]) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(part) + "\n")


def _sum(parts: Iterable[Mapping[str, Any]], key: str) -> int:
    return sum(part[key] for part in parts)


def _progress(name: str, parts: list[dict[str, Any]], characters: int) -> Any:
    """A bar, where there is more than a part to do."""
    if characters <= PART:
        return nullcontext()
    return Progress(f"tokenize {name}", characters, _sum(parts, "characters"))
