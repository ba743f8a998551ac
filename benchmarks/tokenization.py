"""Text to tokens on disk: tokens per second beside `datasets.map`, and memory by size of corpus.

    python benchmarks/tokenization.py --out benchmarks/results/tokenization_cpu.json

The corpus is WikiText-2's training text (or what stands in for it) again and again, each time with
the words of every line turned further, so that no line comes twice. Both sides have one tokenizer,
and take turns. Ours reads the file, splits and hashes its documents, encodes and writes them.
`datasets.map` encodes what lies in Arrow files already and writes Arrow files; with one process,
whose tokenizer has all cores, and with a process for each core. A ratio is the median over rounds
of that within one round. Memory is the peak of a process that does it all: hashes, merges, tokens,
a batch; pages of mapped files are part of it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from outcome import keep
from turns import in_turns

from normlab.data import DataConfig, load_corpus, load_tokens, shards
from normlab.progress import console

# Not getrusage's: that is at least what the process that began this one had taken by then.
WHOLE = """
import json, re, sys, time
from normlab.data import Batches, DataConfig, load_tokens
began = time.perf_counter()
fields = json.loads(sys.argv[1])
ids = load_tokens(DataConfig(**fields)).split("train") if fields else ()
if fields: Batches(ids, 2, 16, 0).at(5)
most = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(json.dumps([len(ids), int(most) / 1024, time.perf_counter() - began]))
"""


def write_corpus(file: Path, megabytes: float) -> None:
    """So many bytes of text, no line twice."""
    lines = load_corpus(DataConfig()).text("train").splitlines()
    with file.open("w", encoding="utf-8") as out:
        for turn in count():
            for line in lines:
                words = line.split()
                at = turn % len(words) if words else 0
                out.write(" ".join(words[at:] + words[:at]) + "\n")
                if not words and out.tell() >= megabytes * 1e6:
                    return


def config(file: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Of a run on the file, its cache beside it."""
    cache = str(file.with_suffix(".cache"))
    return {"corpus": "text", "path": str(file), "cache": cache, "vocab_size": asked.vocabulary}


def speed(file: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second of each way."""
    import datasets

    datasets.disable_progress_bars()
    tokens = load_tokens(DataConfig(**config(file, asked)))
    documents = list(tokens.corpus.documents("train"))
    folder = file.parent
    datasets.Dataset.from_dict({"text": documents}).save_to_disk(str(folder / "arrow"))
    rows = datasets.load_from_disk(str(folder / "arrow"))
    total = sum(map(len, tokens.tokenizer.encode_each(documents)))
    del documents

    def ours() -> None:
        shutil.rmtree(folder / "ours", ignore_errors=True)
        facts = tokens.corpus.parts.facts["train"]
        shards.write(folder / "ours", tokens.corpus.documents("train"), tokens.tokenizer, facts, "")
        assert len(shards.read(folder / "ours")) == total

    def mapped(processes: int | None) -> Callable[[], None]:
        def call() -> None:
            made = rows.map(
                Encode(tokens.tokenizer.definition), batched=True, remove_columns=["text"],
                num_proc=processes, cache_file_name=str(folder / "map.arrow"),
                load_from_cache_file=False,
            )  # fmt: skip
            assert len(made) == len(rows)

        return call

    cores = os.cpu_count()
    ways = {
        "ours": ours,
        "datasets.map": mapped(None),
        f"datasets.map, {cores} processes": mapped(cores),
    }
    console.quiet = True
    seconds = in_turns(ways, asked.rounds)
    console.quiet = False
    return {
        "bytes": file.stat().st_size,
        "tokens": total,
        "tokens_per_second": {n: round(total / statistics.median(s)) for n, s in seconds.items()},
        "times_as_fast_as": {
            name: round(
                statistics.median(b / a for a, b in zip(seconds["ours"], s, strict=True)), 2
            )
            for name, s in seconds.items()
        },
    }


class Encode:
    """What `map` calls; it goes to other processes, and its hash is that of the definition."""

    def __init__(self, definition: str):
        self.definition = definition

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        made = encoder(self.definition).encode_batch_fast(batch["text"], add_special_tokens=False)
        return {"ids": [encoding.ids for encoding in made]}


_encoders: dict[str, Any] = {}


def encoder(definition: str) -> Any:
    """The library's tokenizer of a definition, one a process."""
    from tokenizers import Tokenizer

    if definition not in _encoders:
        _encoders[definition] = Tokenizer.from_str(definition)
    return _encoders[definition]


def whole(fields: dict[str, Any]) -> tuple[int, float, float]:
    """Tokens, MB at the peak of a process of its own, seconds; without fields of its imports."""
    command = [sys.executable, "-c", WHOLE, json.dumps(fields)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tokens, megabytes, seconds = json.loads(done.stdout.splitlines()[-1])
    return tokens, round(megabytes), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--speed", type=float, default=10, help="megabytes of the timed corpus")
    parser.add_argument("--memory", type=float, nargs="*", default=[1, 10, 100], help="of others")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    result: dict[str, Any] = {"imports_mb": whole({})[1], "memory": []}
    for megabytes in asked.memory:
        with tempfile.TemporaryDirectory() as folder:
            write_corpus(file := Path(folder) / "corpus.txt", megabytes)
            tokens, most, _ = whole(config(file, asked))
            size = file.stat().st_size
        result["memory"].append({"bytes": size, "train_tokens": tokens, "peak_mb": most})
        print(result["memory"][-1], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(file := Path(folder) / "corpus.txt", asked.speed)
        result["speed"] = speed(file, asked)
    keep(result, asked.out)


if __name__ == "__main__":
    main()
