"""What protocols do to a text before it is tokenized, and what they count in it."""

import re

import numpy as np
from jaxtyping import Int64

from normlab.data.tokenizer import Encoding

Counts = Int64[np.ndarray, " tokens"]


def joined_rows(text: str) -> str:
    """The hub's rows joined by two newlines, as the code of GPTQ and many after it do.

    A row is a line with its newline, or the empty string where the line is blank: that is how the
    hub's WikiText was built. Hence three newlines between lines of text, and two for a blank one.
    """
    lines = text.split("\n")
    last = [lines[-1]] if lines[-1].strip() else []
    return "\n\n".join([f"{line}\n" if line.strip() else "" for line in lines[:-1]] + last)


def pages(text: str) -> list[str]:
    """WikiText's articles: each begins at a heading of the first level, ` = Title = `.

    What stands before the first heading is a page of its own, unless it is blank. This is the
    cut of the data set that lm-evaluation-harness reads; no newline ends a page but the last.
    """
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _is_title(line.strip()):
            found.append([])
        found[-1].append(line)
    return [page for lines in found if (page := "\n".join(lines)).strip()]


def _is_title(line: str) -> bool:
    opens = line.startswith("= ") and not line.startswith("= =")
    return opens and line.endswith(" =") and not line.endswith("= =")


_DETOKENIZE = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"s '", r"s'"),
        (r"/' [0-9]/", r"/'[0-9]/"),  # never true of a text, but it is the harness's second rule
        (r" @([-,.])@ ", r"\1"),
        *((f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
        (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
        (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
        (r"{\s*([^}]*?)\s*}", r"{\1}"),
        (r'"\s*([^"]*?)\s*"', r'"\1"'),
        (r"'\s*([^']*?)\s*'", r"'\1'"),
        (r"= = = =", "===="),
        (r"= = =", "==="),
        (r"= =", "=="),
        (r" ° ", "°"),
        (r" \n", "\n"),
        (r"\n ", "\n"),
        (r" N ", " 1 "),
        (r" 's", "'s"),
    )
]


def detokenized(page: str) -> str:
    """`page` as lm-evaluation-harness undoes WikiText's tokenization: its rules, in its order."""
    for pattern, replacement in _DETOKENIZE:
        page = pattern.sub(replacement, page)
    return page


_WORD_START = re.compile(r"(?<!\S)\S")


def words_by_token(text: str, encoding: Encoding) -> Counts:
    """How many of the text's words (between white space) begin in each token."""
    starts = np.fromiter((m.start() for m in _WORD_START.finditer(text)), np.int64)
    tokens = np.searchsorted(encoding.ends, starts, side="right")
    return np.bincount(tokens, minlength=len(encoding.ids))[: len(encoding.ids)]


def bytes_by_token(text: str, encoding: Encoding) -> Counts:
    """How many UTF-8 bytes of the text each token stands for.

    Of tokens that share a character the first has all its bytes.
    """
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    width = 1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000)
    before = np.concatenate([[0], np.cumsum(width)])
    return np.diff(before[encoding.ends], prepend=0)


def spread(total: int, tokens: int) -> Counts:
    """`total` dealt out evenly over `tokens` in whole numbers."""
    return np.diff(np.arange(tokens + 1) * total // max(tokens, 1))
