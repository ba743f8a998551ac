"""Documents in files: txt, jsonl, csv and parquet, plain or compressed."""

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from normlab.data.config import TextConfig
from normlab.data.documents import LONGEST, Source, blocks, records
from normlab.data.wikitext import CorpusDamagedError, CorpusUnavailableError
from normlab.registry import UnknownNameError, unknown

T = TypeVar("T")

SPLIT_WORDS = {
    "train": "train", "validation": "valid", "valid": "valid", "val": "valid", "dev": "valid",
    "test": "test",
}  # fmt: skip
"""How the name of a file, or of a hub's split, begins, and which split that is."""
TEXT = "text"
"""The column that is taken where none is named."""


def source(config: TextConfig) -> Source:
    """The documents of `data.path`; files whose names begin with no split's name are training text.

    Raises:
        CorpusUnavailableError: no such file, or none of a known kind.
    """
    path = Path(str(config.path)).expanduser()
    files = _found(path)
    kept = by_split((file.name, file) for file in files)

    def read(split: str) -> Iterator[str]:
        for file in kept[split]:
            yield from documents(file, config.column)

    stats = [(str(file.resolve()), file.stat()) for file in files]
    stamp = [config.column, *([name, s.st_size, s.st_mtime_ns] for name, s in stats)]
    name = re.sub(r"[^\w.-]+", "-", path.name.split(".")[0]).strip("-") or "text"
    return Source(path.name, name, f"data.path={path.absolute()}", tuple(kept), read, stamp)


def by_split(named: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """Things by the split that their name begins with ("dev.jsonl", "test-00000-of-00002").

    Those whose names begin with none are of the training split.
    """
    found: dict[str, list[T]] = {}
    for name, thing in named:
        word = re.match(r"[a-z]*", name.lower())
        found.setdefault(SPLIT_WORDS.get(word[0] if word else "", "train"), []).append(thing)
    return found


def _found(path: Path) -> list[Path]:
    """The files of a path, in the order of their names."""
    if path.is_file():
        _kind(path)
        return [path]
    pattern = f"{glob.escape(str(path))}/**" if path.is_dir() else str(path)
    found = map(Path, glob.glob(pattern, recursive=True))
    files = sorted(f for f in found if f.is_file() and _suffix(f) in READERS)
    if files:
        return files
    if not path.is_dir() and not glob.has_magic(str(path)):
        raise CorpusUnavailableError(f"data.path={path}: no such file or folder")
    raise CorpusUnavailableError(
        f"data.path={path}: no file of a known kind; expected {', '.join(READERS)}, also with "
        f"{', '.join(OPENERS)} after it"
    )


def _suffix(file: Path) -> str:
    """A file's kind: its last ending, or the one before that of a compression."""
    endings = [ending.lower() for ending in file.suffixes] or [""]
    return (endings[-2:-1] or [""])[0] if endings[-1] in OPENERS else endings[-1]


def _kind(file: Path) -> str:
    if (suffix := _suffix(file)) not in READERS:
        raise unknown(f"kind of file of data.path={file}", suffix, READERS)
    return suffix


def documents(file: Path, column: str | None = None) -> Iterator[str]:
    """The documents of one file.

    Raises:
        CorpusDamagedError: it can't be read as what its name says it is.
        UnknownNameError: it has no such column.
    """
    try:
        yield from READERS[_kind(file)](file, column)
    except UnicodeDecodeError as error:
        raise CorpusDamagedError(
            f"{file}: not UTF-8 ({error.reason}); expected a text that is saved as UTF-8"
        ) from None
    except (CorpusDamagedError, UnknownNameError, UnnamedColumnError):
        raise
    except (ValueError, EOFError, OSError, lzma.LZMAError, csv.Error) as error:
        raise CorpusDamagedError(f"{file} can't be read: {error}") from error


# --- compression


def _zst(file: Path) -> IO[bytes]:
    import pyarrow

    return pyarrow.input_stream(str(file), compression="zstd")


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zst,
}
"""By ending: a compressed file to its content."""


@contextmanager
def _opened(file: Path) -> Iterator[IO[str]]:
    """A file as text, decompressed; its newlines stay what they are."""
    with OPENERS.get(file.suffix.lower(), lambda f: f.open("rb"))(file) as raw:
        yield io.TextIOWrapper(raw, encoding="utf-8", newline="\n")


# --- kinds of files


def _txt(file: Path, column: str | None) -> Iterator[str]:
    with _opened(file) as text:
        yield from blocks(_lines(text))


def _lines(text: IO[str]) -> Iterator[str]:
    """Lines; of one that is longer than `LONGEST` parts that end at a blank."""
    rest = ""
    while line := text.readline(LONGEST):
        line, rest = rest + line, ""
        if len(line) >= LONGEST and not line.endswith("\n"):
            head, blank, tail = line.rpartition(" ")
            line, rest = (head + blank, tail) if head else (line, "")
        yield line
    if rest:
        yield rest


def _jsonl(file: Path, column: str | None) -> Iterator[str]:
    def rows() -> Iterator[Mapping[str, Any]]:
        for number, line in enumerate(text, 1):
            try:
                row = json.loads(line) if not line.isspace() else {}
            except ValueError as error:
                raise CorpusDamagedError(f"{file}, line {number}: no JSON ({error})") from None
            if not isinstance(row, dict):
                raise CorpusDamagedError(f"{file}, line {number}: expected an object, {{…}}")
            if row:
                yield row

    with _opened(file) as text:
        yield from records(column_of(rows(), column, str(file)), str(file))


def _csv(file: Path, column: str | None) -> Iterator[str]:
    csv.field_size_limit(1 << 30)  # a document is longer than the 128 KiB of its default
    with _opened(file) as text:
        yield from records(column_of(csv.DictReader(text), column, str(file)), str(file))


def _parquet(file: Path, column: str | None) -> Iterator[str]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as table:
        strings = [f.name for f in table.schema_arrow if "string" in str(f.type)]
        chosen = column_name(table.schema_arrow.names, strings, column, str(file))
        batches = table.iter_batches(1024, columns=[chosen])
        yield from records((row for b in batches for row in b.column(0).to_pylist()), str(file))


READERS: dict[str, Callable[[Path, str | None], Iterator[str]]] = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""By ending: a file, and the column that was asked for, to documents."""


class UnnamedColumnError(ValueError):
    """Several columns hold text, and none was named."""


def column_of(rows: Iterable[Mapping[str, Any]], asked: str | None, where: str) -> Iterator[Any]:
    """One column of rows, chosen by the first of them."""
    chosen = None
    for row in rows:
        if chosen is None:
            strings = [name for name, value in row.items() if isinstance(value, str)]
            chosen = column_name(list(row), strings, asked, where)
        yield row.get(chosen)


def column_name(names: Sequence[str], strings: Sequence[str], asked: str | None, where: str) -> str:
    """The column that holds the text: the one asked for, `text`, or the only one of strings.

    Raises:
        UnknownNameError: no such column, or none was named and none holds text.
        UnnamedColumnError: several hold text.
    """
    if asked is None and (TEXT in names or len(strings) == 1):
        return TEXT if TEXT in names else strings[0]
    if asked is None and len(strings) > 1:
        raise UnnamedColumnError(
            f"{where} has several columns of text: expected data.column=NAME, one of "
            f"{', '.join(sorted(strings))}"
        )
    if asked not in names:
        raise unknown(f"data.column of {where}", asked, names)
    return str(asked)
