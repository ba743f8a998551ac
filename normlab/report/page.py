"""The page: sections that have something to say, with style and script inside."""

from collections.abc import Sequence
from pathlib import Path

from normlab.report.curves import insides, losses, rates
from normlab.report.markup import Markup, element
from normlab.report.numbers import differences, perplexities, runs, seeds
from normlab.report.papers import papers
from normlab.report.ranges import ranges
from normlab.report.sources import Sources
from normlab.results.record import GOOD

HERE = Path(__file__).parent
ICON = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>"  # none is asked for then


def page(sources: Sources, title: str) -> str:
    """The whole file: it asks no network for anything.

    Args:
        sources: runs and records; whatever they hold is escaped.
        title: of the page.
    """
    found = [(name, said, parts) for name, said, parts in _sections(sources) if parts]
    links = [element("a", said, href=f"#{name}") for name, said, _ in found]
    body = [
        element("header", element("h1", title), element("p", _summary(sources)),
                element("nav", links, aria_label="Sections")),
        element("main", [
            element("section", element("h2", said), *parts, id=name) for name, said, parts in found
        ]),
        element("div", id="tip", role="status", hidden=True),
        element("script", Markup((HERE / "script.js").read_text(encoding="utf-8"))),
    ]  # fmt: skip
    return "<!doctype html>\n" + element("html", _head(title), element("body", body), lang="en")


def _head(title: str) -> Markup:
    return element(
        "head",
        Markup('<meta charset="utf-8">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        Markup(f'<link rel="icon" href="{ICON}">'),
        element("title", title),
        element("style", Markup((HERE / "style.css").read_text(encoding="utf-8"))),
    )


def _sections(sources: Sources) -> list[tuple[str, str, Sequence[Markup]]]:
    s = sources
    return [
        ("perplexity", "Perplexity", perplexities(s)),
        ("seeds", "Seeds", seeds(s.records)),
        ("runs", "Runs", runs(s)),
        ("losses", "Loss", losses(s.runs)),
        ("rates", "Learning rates", rates(s.runs)),
        ("ranges", "Ranges", ranges(s.records)),
        ("insides", "Inside", insides(s.runs)),
        ("differences", "Differences", differences(s)),
        ("papers", "Provenance", papers(s)),
    ]


def _summary(sources: Sources) -> str:
    texts = dict.fromkeys(
        f"{r.dataset_title}, {r.split} split, protocol {r.protocol}"
        for r in sources.records
        if r.dataset_title
    )
    failed = sum(run.state not in GOOD for run in sources.runs)
    parts = [f"{len(sources.runs)} training runs" + f" ({failed} not finished well)" * bool(failed)]
    parts.append(f"{len(sources.records)} records")
    return "; ".join([", ".join(parts), *texts]) + "."
