"""A corpus: three named splits of text, and what a record must say about them."""

import hashlib
import logging
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field

from normlab.data import embedded, files, hub, wikitext
from normlab.data.config import AUTO, DataConfig
from normlab.data.documents import Documents
from normlab.data.wikitext import CorpusDamagedError, CorpusUnavailableError, Reader
from normlab.registry import choice

__all__ = [
    "SPLITS",
    "Corpus",
    "CorpusDamagedError",
    "CorpusUnavailableError",
    "load_corpus",
]

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
NOTICE = "NORMLAB_NOTICE"
"""Environment variable: "off" where a command before has said that WikiText-2 is missing."""


@dataclass(frozen=True)
class Corpus:
    """Text in three splits, read when asked for and kept.

    Args:
        name: wikitext2, wikitext2-raw or embedded; of a text of one's own a word and eight digits
            of its hash.
        revision: which version of it.
        title: what a table's head says.
        read: a split's name to its whole text.
        parts: its documents, where it is read by them; None: a split is one document.
    """

    name: str
    revision: str
    title: str
    read: Reader = field(repr=False, compare=False)
    parts: Documents | None = field(default=None, repr=False, compare=False)
    _texts: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def text(self, split: str) -> str:
        """The whole split as one string, each line with its newline.

        Raises:
            UnknownNameError: a split other than train, valid and test.
            CorpusUnavailableError: this split isn't where the others are.
            CorpusDamagedError: the text isn't the published one.
        """
        choice("split", split, SPLITS)
        if split not in self._texts:
            self._texts[split] = self.read(split)
        return self._texts[split]

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split one by one; joined they are its text.

        Raises:
            As `text`.
        """
        choice("split", split, SPLITS)
        return self.parts(split) if self.parts else iter([self.text(split)])

    def sha256(self, split: str) -> str:
        """Hash of the split's UTF-8 bytes."""
        if self.parts is not None:
            self.parts.check(choice("split", split, SPLITS))
            return str(self.parts.facts[split]["sha256"])
        return hashlib.sha256(self.text(split).encode()).hexdigest()


def load_corpus(config: DataConfig) -> Corpus:
    """The corpus that `config` names; for `auto`, WikiText-2 or else the embedded one.

    Nothing but the place of the text is looked up here: a split is read when it is asked for. A
    text of one's own is read once, for its hash, unless the cache knows its files.

    Raises:
        CorpusUnavailableError: what was asked for by name (or by `data.root`) can't be had.
        CorpusDamagedError: a file of one's own isn't what its name says.
    """
    if config.corpus in OWN:
        return _own(config)
    if config.corpus == "embedded":
        return _embedded()
    if config.corpus not in AUTO:
        return _wikitext(config.corpus, config)
    try:
        return _wikitext(AUTO[config.corpus], config)
    except CorpusUnavailableError:
        if config.root:  # somebody named the place
            raise
        _notice(config)
        return _embedded()


def _notice(config: DataConfig) -> None:
    """Say in two lines which text is read and how to get the other, once a process."""
    if config.corpus in _told or os.environ.get(NOTICE) == "off":
        return
    _told.add(config.corpus)
    name, root = AUTO[config.corpus], config.root_folder()
    folder, suffix = wikitext.CONFIGS[name], wikitext.SUFFIXES[name]
    log.warning(
        "WikiText-2 isn't %s: data=%s reads Python's reference text (pydoc_data.topics).\n"
        "To read WikiText-2: NORMLAB_DATA=DIR with %s/wiki.{train,valid,test}.%s; data=%s says "
        "what was tried.",
        f"in NORMLAB_DATA={root}" if root else "here", config.corpus, folder, suffix, name,
    )  # fmt: skip


_told = set[str]()
"""The values of `data=` whose notice this process has given: a sweep's later runs repeat none."""


def _embedded() -> Corpus:
    return Corpus(
        name="embedded",
        revision=f"Python {platform.python_version()}",
        title=f"{embedded.TITLE}, not WikiText-2",
        read=embedded.read,
    )


def _own(config: DataConfig) -> Corpus:
    source = OWN[config.corpus](config)
    parts = Documents.of(source, config.shares, config.cache_folder())
    counts = {split: facts["documents"] for split, facts in parts.facts.items()}
    cut = [split for split in SPLITS if split not in source.own and counts[split]]
    told = f", {' and '.join(cut)} cut {config.split} by document hash" if cut else ""
    return Corpus(
        name=f"{source.name}-{parts.digest}",
        revision=f"SHA-256 {parts.digest}" + told,
        title=source.title,
        read=lambda split: "".join(parts(split)),
        parts=parts,
    )


OWN = {"text": files.source, "hf": hub.source}
"""What reads a text of one's own, by the name of its corpus."""


def _wikitext(name: str, config: DataConfig) -> Corpus:
    published = wikitext.CONFIGS[name]
    known = [split for split in SPLITS if (name, split) in wikitext.FACTS]
    unknown = [split for split in SPLITS if split not in known]
    return Corpus(
        name=name,
        revision=published + "".join(f", {split} split unverified" for split in unknown),
        title=f"WikiText-2 ({published})",
        read=wikitext.find(name, config.root_folder()),
    )
