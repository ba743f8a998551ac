"""The corpus that needs no network: reference text that every Python carries."""

import platform
from itertools import accumulate

TITLE = f"Python reference text (pydoc_data.topics, Python {platform.python_version()})"
SHARES = {"train": 0.90, "valid": 0.05, "test": 0.05}


def read(split: str) -> str:
    """A split of `pydoc_data.topics`, the text behind `help("topics")`.

    The topics in the order of their names, cut between topics into 90, 5 and 5 % of the
    characters, as nearly as whole topics allow. A topic whose text stands inside another (the
    "if" statement inside "compound") is left out, so that no split repeats what another holds.
    """
    topics = _topics()
    total = sum(map(len, topics))
    first = 0.0
    for name, share in SHARES.items():
        last = first + share
        if name == split:
            ends = accumulate(map(len, topics))
            middles = (end - len(t) / 2 for t, end in zip(topics, ends, strict=True))
            chosen = (first <= m / total < last for m in middles)
            return "\n".join(t for t, keep in zip(topics, chosen, strict=True) if keep)
        first = last
    raise KeyError(split)


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    bodies = [text.partition("\n\n")[2].strip() for text in texts]
    return [
        text
        for i, (text, body) in enumerate(zip(texts, bodies, strict=True))
        if not any(body in other for j, other in enumerate(texts) if j != i)
    ]
