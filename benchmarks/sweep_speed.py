"""How long a sweep takes in one process, beside another checkout's code.

    python benchmarks/sweep_speed.py ../old --rounds 3
    python benchmarks/sweep_speed.py ../old --sweep experiment=dyt-alpha       all of its 30 runs

OLD is a checkout with a virtual environment in `.venv` (or `--python`). Both checkouts run the same
sweep in a process of their own, by turns, in an empty directory and without JAX's persistent cache:
what one run of a sweep finds compiled, an earlier run of the same process has compiled. Tokens are
made before the first turn. Besides the seconds (of the wall, and of the processor) and the most
memory that was resident it says how far the losses lie apart: the two compute the same but for
rounding.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from outcome import keep
from process import measured

HERE = Path(__file__).parent.parent
SWEEP = ["experiment=dyt-alpha", "norm=dyt", "norm.alpha=0.25,1.0,4.0", "seed=0,1"]
"""12 of the 30 runs of configs/experiment/dyt-alpha.yaml: three initial values, two widths."""


def swept(checkout: Path, python: Path, sweep: list[str], cache: Path) -> dict[str, Any]:
    """Seconds of one process, and each run's losses by what was asked."""
    told = {"NORMLAB_CACHE": str(cache), "NORMLAB_XLA_CACHE": "off"}
    with tempfile.TemporaryDirectory() as out:
        command = [str(python), "-m", "train", "-m", *sweep, f"runs={out}"]
        found = measured(command, checkout, **told)
        return found | {"losses": dict(map(losses, Path(out).glob("*/*.jsonl")))}


def losses(metrics: Path) -> tuple[str, list[float]]:
    """What a run was asked for, and its losses in order; of another file none."""
    if metrics.name != "metrics.jsonl":
        return "", []
    rows = map(json.loads, metrics.read_text().splitlines())
    found = [row[key] for row in rows for key in ("loss", "valid_loss") if key in row]
    (file,) = (p for n in ("overrides", "asked") if (p := metrics.parent / f"{n}.yaml").exists())
    asked = file.read_text().split("runs=")[0]
    return asked, found


def furthest(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> dict[str, float]:
    """The largest difference of two losses, relative: of the first ones, and of all."""
    apart = [
        [abs(a - b) / abs(b) for a, b in zip(ours[name], theirs[name], strict=True)]
        for name in ours
        if name
    ]
    return {"first 4": max(max(run[:4]) for run in apart), "all": max(map(max, apart))}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path, help="the other checkout")
    parser.add_argument("--python", type=Path, help="its interpreter; else OLD/.venv/bin/python")
    parser.add_argument("--sweep", nargs="+", default=SWEEP, help="what is asked of train -m")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file")
    asked = parser.parse_args()
    python = (asked.python or asked.old / ".venv" / "bin" / "python").absolute()
    sides = {"old": (asked.old, python), "new": (HERE, Path(sys.executable))}
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        swept(*sides["new"], [a.split(",")[0] for a in asked.sweep], Path(cache))
        for turn in range(asked.rounds):
            names = list(sides)[:: 1 if turn % 2 else -1]
            made = {name: swept(*sides[name], asked.sweep, Path(cache)) for name in names}
            apart = furthest(made["new"].pop("losses"), made["old"].pop("losses"))
            ratio = {clock: made["old"][clock] / made["new"][clock] for clock in ("wall", "cpu")}
            rounds.append({**made, "ratio": ratio, "losses apart": apart})
            print(json.dumps(rounds[-1]), flush=True)
    middle = {c: statistics.median(r["ratio"][c] for r in rounds) for c in ("wall", "cpu")}
    keep({"sweep": asked.sweep, "rounds": rounds, "median ratio": middle}, asked.out)


if __name__ == "__main__":
    main()
