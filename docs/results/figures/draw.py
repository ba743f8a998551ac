"""Figures of result pages, from their tables: `python docs/results/figures/draw.py`."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normlab.plots import captioned, figure, look, save

HERE = Path(__file__).parent
PAGES = HERE.parent


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of the page's table whose header begins with `first`, header left out."""
    lines = (PAGES / page).read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(first))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append(
            [c.replace("`", "").strip(" *") for c in re.split(r"(?<!\\)\|", line.strip()[1:-1])]
        )
    return found


def more(page: str, table: str) -> list[list[str]]:
    """The cells of a table that stands in JSON beside its page."""
    held = json.loads((PAGES / f"{page}-more.json").read_text(encoding="utf-8"))
    return [list(row.values()) for row in held["tables"][table]]


def number(text: str) -> float:
    """The first number of a cell, its thousands' commas and the minus of print included."""
    match = re.search(r"[-+−]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?", text)
    assert match, text
    return float(match[0].replace(",", "").replace("−", "-"))


def spread(text: str) -> float:
    """What stands after the ± of a cell; 0 without one."""
    return number(text.partition("±")[2]) if "±" in text else 0.0


def ranked(ax: Any, named: Sequence[tuple[str, str]], title: str) -> None:
    """Names over a logarithmic axis of perplexity, the best at the top, with bars of ± spread."""
    order = sorted(named, key=lambda pair: -number(pair[1]))
    for at, (_, cell) in enumerate(order):
        value, error = number(cell), spread(cell)
        error = [[min(error, 0.9 * value)], [error]]
        ax.errorbar(value, at, xerr=error, fmt="o", ms=5, capsize=3, color=look(0)[0])
    ax.set_yticks(range(len(order)), [name for name, _ in order])
    ax.set(xscale="log", xlabel="test perplexity", title=title)
    plain(ax.xaxis)
    ax.grid(axis="x", which="both", alpha=0.3)


def plain(axis: Any) -> None:
    """Whole numbers at the ticks of a logarithmic axis."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_minor_formatter(NullFormatter())


def ten_models() -> Any:
    """Perplexity of each norm and placement."""
    made, ((ax,),) = figure(1, 1, (6, 3.2))
    found = rows("ten-models.md", "| norm | placement | optimizer.lr | fp32")
    ranked(ax, [(f"{r[0]}, {r[1]}", r[3]) for r in found], "Ten small models in fp32")
    return made


def catalogue() -> Any:
    """Perplexity of each type at pre, and of each placement with RMSNorm."""
    made, ((left, right),) = figure(1, 2, (9, 3.8))
    found = rows("catalogue.md", "| norm | placement | fp32 | fp16:pairwise")
    half = next(n for n, r in enumerate(found) if r[1] != "pre")
    ranked(left, [(r[0], r[2]) for r in found[:half]], "Norm types, at pre")
    named = [(r[1].replace(" + norm_embed", ", normed embedding"), r[2]) for r in found[half:]]
    ranked(right, named, "Placements, with RMSNorm")
    return made


def word_level() -> Any:
    """Validation perplexity over the passes."""
    made, ((ax,),) = figure(1, 1, (5, 3))
    found = [[number(c) for c in r] for r in more("word-level", "validation perplexity by step")]
    ax.plot([r[1] for r in found], [r[2] for r in found], "o-", ms=4, color=look(0)[0])
    best = min(found, key=lambda r: r[2])
    ax.annotate(
        f"best: {best[2]}", best[1:], (best[1] - 1.6, best[2] + 45), arrowprops={"arrowstyle": "->"}
    )
    title = "A word-level model over seven passes"
    ax.set(xlabel="passes over the text", ylabel="validation perplexity", title=title)
    return made


def unseen() -> Any:
    """What `moments` predicts and what the rows are, on the two wide models that it fails on."""
    made, ((ax,),) = figure(1, 1, (7, 2.8))
    found = more("unseen", "what moments predicts on wide models")[::-1]
    for at, r in enumerate(found):
        low, high = (number(part) for part in r[2].split(", "))
        ax.plot([low, high], [at, at], lw=6, solid_capstyle="butt", color=look(5)[0])
        ax.plot(number(r[3]), at, look(1)[1], color=look(1)[0])
    ax.plot([], [], lw=6, color=look(5)[0], label="predicted by moments, low to high")
    ax.plot([], [], look(1)[1], color=look(1)[0], label="median of the rows")
    ax.set_yticks(range(len(found)), [f"{r[1]}, d = {r[0]}" for r in found])
    ax.set(xscale="log", xlabel="‖x‖")
    title = "Rows of two wide models, and what moments predicts"
    return captioned(made, *ax.get_legend_handles_labels(), title)


def arithmetic() -> Any:
    """What an error of a norm's output costs."""
    made, ((ax,),) = figure(1, 1, (6, 3.4))
    for i, r in enumerate(r for r in rows("arithmetic.md", "| norm | perplexity") if r[2]):
        colour, marker = look(i) if i < 7 else (look(3)[0], "*")
        size, cost = number(r[4]), abs(number(r[2]))
        ax.errorbar(
            size,
            cost,
            yerr=[[min(spread(r[2]), 0.9 * cost)], [spread(r[2])]],
            color=colour,
            fmt=marker,
            capsize=3,
            label=r[0],
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="mean error of the output row, the model's rows",
        ylabel="|Δ| of perplexity",
        title="What an error of a norm's output costs",
    )
    made.legend(loc="outside right center")
    return made


def transforms() -> Any:
    """Perplexity as norms are removed one at a time."""
    made, ((ax,),) = figure(1, 1, (7, 3.4))
    held = more("transforms", "validation perplexity as norms are removed, in this order")
    found = [r for r in held if r[1]]
    for i, (column, name) in enumerate(((1, "after freezing"), (2, "after tuning"))):
        colour, marker = look(i)
        ax.plot([number(r[column]) for r in found], marker, ls="-", color=colour, label=name)
    control = next(r for r in held if "control" in r[0])
    ax.axhline(number(control[2]), ls=":", color="k", label="tuned as long with all norms")
    ax.set_xticks(
        range(len(found)), [r[0].replace("blocks.", "") for r in found], rotation=30, ha="right"
    )
    ax.set(ylabel="validation perplexity", xlabel="norm removed, in this order")
    title = "Perplexity as norms are removed one by one"
    return captioned(made, *ax.get_legend_handles_labels(), title)


def speed() -> Any:
    """Training speed over PyTorch's, at each shape."""
    made, ((ax,),) = figure(1, 1, (7, 3.2))
    found = rows("speed.md", "| on the Xeon")[::-1]
    for i, name in enumerate(("PyTorch eager", "compiled")):
        at = [n + 0.2 - 0.4 * i for n in range(len(found))]
        ax.barh(at, [number(r[2 + i]) for r in found], 0.38, color=look(i)[0], label=name)
    ax.axvline(1, color="k", lw=1, ls=":")
    ax.set_yticks(range(len(found)), [r[0] for r in found])
    ax.set(xlabel="normlab's training speed over that of")
    title = "Training on two cores of a Xeon with AMX"
    return captioned(made, *ax.get_legend_handles_labels(), title)


def growth() -> Any:
    """Time above memory, an axis a panel, each beside what it should not outgrow."""
    file = HERE.parent.parent.parent / "benchmarks" / "results" / "growth_cpu.json"
    found = json.loads(file.read_text(encoding="utf-8"))["growth"]
    axes = list(dict.fromkeys(one["axis"] for one in found))
    kinds = list(dict.fromkeys(one["what"] for one in found))
    made, panels = figure(2, len(axes), (2 * len(axes), 4.4))
    for one in found:
        x = [row[one["axis"]] for row in one["points"]]
        colour, marker = look(kinds.index(one["what"]))
        for line, (name, beside) in enumerate((("seconds", "work"), ("peak_mib", "held_mib"))):
            panel, y = panels[line, axes.index(one["axis"])], [row[name] for row in one["points"]]
            like = [row[beside] * y[-1] / one["points"][-1][beside] for row in one["points"]]
            panel.loglog(x, y, color=colour, marker=marker, label=one["what"])
            panel.loglog(x, like, color="grey", ls=":")
            panel.set_xticks(x, [str(v) for v in x], fontsize=7)
            panel.set_xlabel(one["axis"] + " (MB)" * (one["axis"] == "corpus"))
            panel.minorticks_off()
            ends = [y for drawn in panel.lines[::2] for y in drawn.get_ydata()]
            ends = [min(ends), max(ends)]
            panel.set_yticks(ends, [f"{v:.2g}" if v < 10 else f"{v:.0f}" for v in ends])
    panels[0, 0].set_ylabel("seconds\n(dotted: as the work)")
    panels[1, 0].set_ylabel("MiB at the peak\n(dotted: as what is held)")
    drawn = {h.get_label(): h for p in panels[0] for h in p.lines[::2]}
    return captioned(made, list(drawn.values()), list(drawn), "Time and memory by size")


DRAWN = {
    "ten-models": ten_models, "catalogue": catalogue, "word-level": word_level, "unseen": unseen,
    "arithmetic": arithmetic, "transforms": transforms, "speed": speed,
    "growth": growth,
}  # fmt: skip

if __name__ == "__main__":
    for name, draw in DRAWN.items():
        save(draw(), HERE / name)
        (HERE / f"{name}.svg").unlink()
