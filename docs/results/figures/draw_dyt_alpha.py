"""The figure of dyt-alpha.md, from its runs: `python docs/results/figures/draw_dyt_alpha.py`."""

import statistics
from pathlib import Path

from normlab.plots import figure, look, save
from normlab.runs.run import Run

runs = [Run(p.parent) for p in Path("runs/dyt-alpha").glob("*/record.json")]
made, ((left, right),) = figure(1, 2, (8, 3.4))
for i, width in enumerate((48, 96)):
    colour, marker = look(i)
    losses, moved = {}, {}
    for run in runs:
        config = run.read("config.yaml")
        if config["model"]["width"] == width:
            alpha, last = config["norm"]["alpha"], run.diagnostics[-1]["vectors"]
            losses.setdefault(alpha, []).append(run.metrics[-1]["valid_loss"])
            moved.setdefault(alpha, []).extend(v["mean"] for k, v in last.items() if "alpha" in k)
    at = sorted(losses)
    means = [statistics.mean(losses[a]) for a in at]
    left.plot(at, means, color=colour, marker=marker, ms=5, label=f"width {width}")
    each = [(a, loss) for a in at for loss in losses[a]]
    left.plot(*zip(*each, strict=True), "_", color=colour)
    shown = [(a * (0.95, 1.05)[i], v) for a in at for v in moved[a]]
    right.plot(*zip(*shown, strict=True), marker, color=colour, ms=3)
right.plot(at, at, "k:", lw=1)
left.set(xscale="log", xlabel="initial α", ylabel="validation loss at the end")
right.set(xscale="log", yscale="log", xlabel="initial α", ylabel="α of each site at the end")
for axes in (left, right):
    axes.set_xticks(at, [f"{a:g}" for a in at])
    axes.minorticks_off()
right.set_yticks(at, [f"{a:g}" for a in at])
left.legend()
made.suptitle("Validation loss by the initial α of DyT, and where α has gone", fontsize=10)
drawn = Path(__file__).parent / "dyt-alpha-loss"
save(made, drawn)
drawn.with_suffix(".svg").unlink()
