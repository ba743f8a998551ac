"""Documents in a data set of the hub, or in a folder of one, through `datasets`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from normlab.data import wikitext
from normlab.data.config import TextConfig
from normlab.data.documents import Source, blocks, records
from normlab.data.files import by_split, column_name
from normlab.data.wikitext import CorpusUnavailableError

SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` leaves in a folder: of several splits, of one."""


def source(config: TextConfig) -> Source:
    """The documents of `data.name`; of its splits those whose names begin with no split's name are
    training text.

    Raises:
        CorpusUnavailableError: it can't be had; the message says how to get it.
    """
    found = _loaded(config)
    kept = by_split(sorted(found.items()))
    place = " ".join([f"data.name={config.name}", *filter(None, [config.config, config.revision])])

    def read(split: str) -> Iterator[str]:
        for rows in kept[split]:
            yield from _documents(rows, config, place)

    path = Path(str(config.name)).expanduser()
    title = " ".join(filter(None, [path.name if path.is_dir() else config.name, config.config]))
    name = re.sub(r"[^\w.-]+", "-", config.config or path.name)
    return Source(title, name, place, tuple(kept), read, _stamp(found, config))


def _documents(rows: Any, config: TextConfig, where: str) -> Iterator[str]:
    first = next(iter(rows), None)
    if first is None:
        return
    strings = [name for name, value in first.items() if isinstance(value, str)]
    column = column_name(list(first), strings, config.column, where)
    batches = rows.select_columns([column]).iter(1000)
    texts = (text for batch in batches for text in batch[column])
    if config.rows == "documents":
        yield from records(texts, where)
    else:
        empty = wikitext.BLANK if (config.config or "").startswith("wikitext-") else "\n"
        yield from blocks(_line(text or "", empty) for text in texts)


def _line(row: str, empty: str) -> str:
    """A row as a line, with its newline."""
    return row if row.endswith("\n") else f"{row}\n" if row else empty


def _stamp(found: dict[str, Any], config: TextConfig) -> Any:
    """The files behind a data set; None where there are none here (streamed, or in memory)."""
    files = [
        Path(file["filename"])
        for rows in found.values()
        for file in getattr(rows, "cache_files", ())
    ]
    if not files or config.streaming:
        return None
    stats = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return [config.column, config.rows, *stats]


def _loaded(config: TextConfig) -> dict[str, Any]:
    """By its name there each split."""
    import datasets

    folder = Path(str(config.name)).expanduser()
    try:
        if any((folder / name).is_file() for name in SAVED):
            rows = datasets.load_from_disk(str(folder))
            return dict(rows) if isinstance(rows, datasets.DatasetDict) else {"train": rows}
        if folder.is_dir():
            rows = datasets.load_dataset(*_folder(folder, config), streaming=config.streaming)
        else:
            rows = _named(config)
        return dict(rows)
    except Exception as error:  # whatever stops it, the text can't be had
        raise CorpusUnavailableError(_ways(config, error)) from error


def _named(config: TextConfig) -> Any:
    """From the hub if it answers in seconds, else from what an earlier `load_dataset` kept."""
    import datasets

    offline, reason = datasets.config.HF_HUB_OFFLINE, wikitext.unanswered(str(config.name))
    datasets.config.HF_HUB_OFFLINE = offline or reason is not None
    try:
        return datasets.load_dataset(
            config.name, config.config, revision=config.revision, streaming=config.streaming
        )
    except ConnectionError as error:
        raise ConnectionError(reason or str(error)) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline


def _folder(folder: Path, config: TextConfig) -> list[str]:
    """A folder of files for `load_dataset`: its card, or its folders, may know configurations."""
    if config.config and (folder / "README.md").is_file():
        return [str(folder), config.config]
    below = folder / (config.config or "")
    return [str(below if below.is_dir() else folder)]


def _ways(config: TextConfig, error: Exception) -> str:
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    asked = ", ".join(f'"{word}"' for word in (config.name, config.config) if word)
    return (
        f"data.name={config.name} can't be had here ({said}). Ways to get it: (1) data.name=DIR, a "
        "folder of files or one that `save_to_disk` wrote; (2) fill the Hugging Face cache on a "
        f"machine that has the hub (`datasets.load_dataset({asked})`) and point HF_HOME at it; "
        "(3) let this machine reach the hub. data=text data.path=FILE reads files of your own"
    )
