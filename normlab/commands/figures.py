"""`python -m evaluate figures DIR`: figures from what a directory holds.

Records that `python -m evaluate out=DIR` wrote, runs that `python -m train runs=DIR` wrote,
or both; or one run. They come to DIR/figures, as SVG and PNG.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from normlab.plots import record_figures, run_figures
from normlab.results import RecordFile, latest
from normlab.runs.run import Run, is_run


def main(arguments: Sequence[str]) -> None:
    """Write DIR/figures."""
    parser = argparse.ArgumentParser(prog="python -m evaluate figures", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="of records or of runs")
    parser.add_argument(
        "--each", action="store_true", help="every model by itself too, where there are several"
    )
    asked = parser.parse_args(arguments)
    out = asked.directory
    records = latest(RecordFile(out / "records.jsonl").read())
    runs = [Run(path) for path in [out, *sorted(out.glob("*"))] if is_run(path)]
    if not records and not runs:
        sys.exit(
            f"{out} holds no records and no runs: expected a directory that `python -m evaluate` "
            "or `python -m train` wrote"
        )
    try:
        written = record_figures(records, out / "figures", asked.each)
        written += run_figures(runs, out / "figures")
    except ImportError as error:
        sys.exit(str(error))
    if not written:
        sys.exit(
            f"nothing to draw in {out}: expected a record with a perplexity beside fp32's, runs of "
            "two learning rates or more, or runs with diagnostics_every=N"
        )
    print(f"written to {out / 'figures'}: {', '.join(path.name for path in written)}")
