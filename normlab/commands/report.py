"""`python -m evaluate report DIR …`: runs and evaluations as one page of HTML."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from normlab.commands.launch import explained

EXAMPLES = """examples:
  python -m evaluate report results runs/table        records and runs: results/report.html
  python -m evaluate report runs --out page.html      runs alone, none evaluated yet
"""


def main(arguments: Sequence[str]) -> None:
    """Write the page, and say where."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluate report",
        description=(
            "One HTML file that needs nothing else: the best method and whether the next one "
            "differs, loss curves, learning rates, every model and precision, ranges by site, "
            "what the configs differ in, and where each number comes from. It takes "
            "`pip install 'normlab[report]'`."
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
        made = _page(asked.directories, asked.title)
        out = asked.out or asked.directories[0] / "report.html"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(made, encoding="utf-8")
        print(f"written to {out} ({len(made.encode()) / 1024:.0f} KiB)")


def _page(directories: Sequence[Path], title: str) -> str:
    """The page, drawn by libraries that only a report needs."""
    try:
        from normlab.report.page import page
    except ModuleNotFoundError as error:
        raise ValueError(
            f"a report needs {error.name}, which is not installed: pip install 'normlab[report]'"
        ) from None
    from normlab.report.sources import read

    return page(read(directories), title)
