"""`python -m evaluate.figures OUT`: figures from the records in a directory, beside its tables."""

import argparse
import sys
from pathlib import Path

from normlab.plots import figures
from normlab.results import RecordFile


def main(arguments: list[str] | None = None) -> None:
    """Write OUT/figures from OUT/records.jsonl."""
    parser = argparse.ArgumentParser(prog="python -m evaluate.figures", description=__doc__)
    parser.add_argument("out", type=Path, help="what `python -m evaluate out=DIR` was given")
    out = parser.parse_args(arguments).out
    records = RecordFile(out / "records.jsonl").read()
    if not records:
        sys.exit(f"{out} holds no records: expected a directory that `python -m evaluate` wrote")
    try:
        written = figures(records, out / "figures")
    except ImportError as error:
        sys.exit(str(error))
    print(f"written to {out / 'figures'}: {', '.join(path.name for path in written)}")


if __name__ == "__main__":
    main()
