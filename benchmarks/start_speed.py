"""From the command to the end of a short table, beside another checkout's code.

    git worktree add ../old 8e88a28
    python benchmarks/start_speed.py ../old --key model --out start_speed.json

Both evaluate two windows of 128 tokens in three columns, by turns, each in a process of its own:
first with an empty cache (cold), then with what the first call has left in it (warm). Only the
model's file is there before. Seconds are of the wall, and of the processor; `--python` is OLD's
interpreter where it has none in `.venv`, and `--key` what it calls `pretrained=` (8e88a28: model).
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from outcome import keep
from process import measured

from normlab import pretrained
from normlab.pretrained.packages import cache_folder

HERE = Path(__file__).parent.parent
MODELS = ["gemma3-270m", "smollm2-135m"]


def called(checkout: Path, python: Path, words: list[str], cache: Path) -> dict[str, float]:
    """Seconds and memory of one call, in an empty directory."""
    told = {"NORMLAB_CACHE": str(cache), "NORMLAB_XLA_CACHE": "on", "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as empty:
        command = [str(python), "-m", "evaluate", *words, "out=results"]
        made = measured(command, Path(empty), **told)
    print(f"{checkout.name}: {words[0]}: {made}", flush=True)
    return made


def cold_and_warm(checkout: Path, python: Path, words: list[str]) -> dict[str, dict[str, float]]:
    """A call that finds nothing kept, and the same again."""
    with tempfile.TemporaryDirectory() as cache:
        (Path(cache) / "pretrained").symlink_to((cache_folder() / "pretrained").absolute())
        return {state: called(checkout, python, words, Path(cache)) for state in ("cold", "warm")}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="the other checkout")
    parser.add_argument("--python", type=Path, help="its interpreter; else OLD/.venv/bin/python")
    parser.add_argument("--key", default="pretrained", help="OLD's word for it")
    parser.add_argument("--models", nargs="+", default=MODELS, help="as pretrained= names them")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file")
    asked = parser.parse_args()
    old = asked.old.absolute()
    python = (asked.python or old / ".venv" / "bin" / "python").absolute()
    sides = {
        "old": (old, python, asked.key),
        "new": (HERE.absolute(), Path(sys.executable), "pretrained"),
    }
    rounds = []
    for model in asked.models:
        pretrained.describe(model)  # fetches its file
        words = ["max_windows=2", f"window={asked.window}"]
        for turn in range(asked.rounds):
            names = list(sides)[:: 1 if turn % 2 else -1]
            seconds = {}
            for name in names:
                checkout, own, key = sides[name]
                seconds[name] = cold_and_warm(checkout, own, [f"{key}={model}", *words])
            rounds.append({"model": model, **seconds})
            print(json.dumps(rounds[-1]), flush=True)
    ratios = {
        f"{model} {state} {clock}": statistics.median(
            r["old"][state][clock] / r["new"][state][clock] for r in rounds if r["model"] == model
        )
        for model in asked.models
        for state in ("cold", "warm")
        for clock in ("wall", "cpu")
    }
    keep({"window": asked.window, "rounds": rounds, "median of old / new": ratios}, asked.out)


if __name__ == "__main__":
    main()
