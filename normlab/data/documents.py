"""A text of one's own: documents that are read one at a time, each in one split."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normlab.data.cache import cached
from normlab.data.wikitext import CorpusUnavailableError

FORMAT = 1
"""Of what is kept about a text, and of what a document is; raised when either changes."""
LONGEST = 1 << 16
"""Characters after which a document of lines ends where no blank line has ended it."""
BETWEEN = "\n\n"
"""What stands after each record, a row of a table that is a document."""


@dataclass(frozen=True)
class Source:
    """Where documents lie.

    Args:
        title: what a table's head says.
        name: the same as one word, such as a file's name without its endings.
        place: where it lies, in words that stay the same when its content changes.
        own: the splits that it has as it lies there.
        read: a split of `own` to its documents, in an order that stays the same.
        stamp: plain JSON that changes when the files do; None: only reading tells.
    """

    title: str
    name: str
    place: str
    own: tuple[str, ...]
    read: Callable[[str], Iterator[str]]
    stamp: Any


@dataclass(frozen=True)
class Documents:
    """The documents of a source by split. A split that the source lacks is cut from its training
    documents: where a document goes depends on its own text and the shares, and on nothing else.

    Args:
        source: where they lie.
        shares: by split its share, from 0 to 1.
        facts: by split what is known of it: `documents`, `characters`, `bytes`, `sha256` (of the
            UTF-8 bytes of all its documents, in order).
    """

    source: Source
    shares: Mapping[str, float]
    facts: Mapping[str, Mapping[str, Any]] = field(repr=False)

    @classmethod
    def of(cls, source: Source, shares: Mapping[str, float], cache: Path) -> "Documents":
        """With the facts from the cache, or else from reading it all once."""

        def make(folder: Path) -> None:
            (folder / "facts.json").write_text(json.dumps(_facts(source, shares)))

        if source.stamp is None:
            return cls(source, shares, _facts(source, shares))
        known = {"stamp": source.stamp, "shares": dict(shares), "format": FORMAT}
        folder = cached(cache, "texts", {"place": source.place, **known}, make)
        return cls(source, shares, json.loads((folder / "facts.json").read_text()))

    def __call__(self, split: str) -> Iterator[str]:
        """The documents of a split.

        Raises:
            CorpusUnavailableError: it has none.
        """
        self.check(split)
        own = [split] if split in self.source.own else ["train"]
        cut = _cut(self.source, self.shares, own)
        return (document for place, document in cut if place == split)

    def check(self, split: str) -> None:
        """Refuse a split without a document."""
        if self.facts[split]["documents"]:
            return
        there = {name: f["documents"] for name, f in self.facts.items() if f["documents"]}
        told = ", ".join(f"{n:,} in {name}" for name, n in there.items()) or "none at all"
        raise CorpusUnavailableError(
            f"{self.source.place} has no document for the {split} split (documents: {told}). "
            f"Expected a file or split of that name, or more documents (in txt a blank line ends "
            "one), or another data.split"
        )

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that say which text it is."""
        told = json.dumps([self.facts[split]["sha256"] for split in sorted(self.facts)])
        return hashlib.sha256(told.encode()).hexdigest()[:8]


def blocks(lines: Iterable[str]) -> Iterator[str]:
    """Documents of lines: each ends with the blank lines after it, or with `LONGEST` characters.

    Joined they are the lines again, but for blank lines that no text follows or precedes.
    """
    held, size, blank = list[str](), 0, False
    for line in lines:
        has_text = not line.isspace() and line != ""
        if has_text and size and (blank or size >= LONGEST):
            yield "".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line) if has_text or size else 0  # blank lines at the start are of the first
        blank = not has_text
    if size:
        yield "".join(held)


def records(rows: Iterable[Any], where: str) -> Iterator[str]:
    """Documents of records: each with a blank line after it; empty ones are left out."""
    for row in rows:
        if row is None or row == "":
            continue
        if not isinstance(row, str):
            kind = type(row).__name__
            raise ValueError(f"{where} holds {kind}: expected text (data.column=NAME)")
        if not row.isspace():
            yield row + BETWEEN


def share(document: str) -> float:
    """Where a document stands between 0 and 1: its SHA-256, white space at its ends left out."""
    digest = hashlib.sha256(document.strip().encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _cut(
    source: Source, shares: Mapping[str, float], read: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Each document of the source's own splits `read`, with the split that it goes to."""
    missing = [split for split in shares if split not in source.own]
    for own in read:
        for document in source.read(own):
            yield (_place(document, missing, shares) if own == "train" else own), document


def _place(document: str, missing: Collection[str], shares: Mapping[str, float]) -> str:
    """Which of the splits that are missing a training document goes to; train: to none of them."""
    at, end = share(document) if missing else 1.0, 0.0
    for split in ("test", "valid"):
        start, end = end, end + shares[split]
        if split in missing and start <= at < end:
            return split
    return "train"


def _facts(source: Source, shares: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    hashes = {split: hashlib.sha256() for split in shares}
    found = {split: {"documents": 0, "characters": 0, "bytes": 0} for split in shares}
    for split, document in _cut(source, shares, source.own):
        raw = document.encode()
        hashes[split].update(raw)
        for name, size in (("documents", 1), ("characters", len(document)), ("bytes", len(raw))):
            found[split][name] += size
    return {split: found[split] | {"sha256": hashes[split].hexdigest()} for split in shares}
