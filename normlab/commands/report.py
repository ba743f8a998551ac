"""`python -m evaluate report DIR …`: runs and evaluations as one page of HTML."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from normlab.commands.launch import explained
from normlab.report.page import page
from normlab.report.sources import read

EXAMPLES = """examples:
  python -m evaluate report results runs/table        records and runs: results/report.html
  python -m evaluate report runs --out page.html      runs alone, none evaluated yet
"""


def main(arguments: Sequence[str]) -> None:
    """Write the page, and say where."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate report",
        description=(
            "One HTML file that needs nothing else: perplexities, runs, loss curves, learning "
            "rates, ranges by site, what the configs differ in, and where each number comes from."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR",
        help="what `python -m evaluate out=DIR` wrote, a run, or a directory of such directories",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="the file; else report.html in the first DIR")
    parser.add_argument("--title", default="normlab report", help="of the page")
    asked = parser.parse_args(arguments)
    with explained():
        made = page(read(asked.directories), asked.title)
        out = asked.out or asked.directories[0] / "report.html"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(made, encoding="utf-8")
        print(f"written to {out} ({len(made.encode()) / 1024:.0f} KiB)")
