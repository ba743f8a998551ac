"""No figure is cut off, taller than a page, or without a title: the library's, the pages' own."""

import csv
import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest

from normlab import plots
from normlab.plots import records, runs, series
from normlab.results.range_report import RangeReport, TensorRange
from tests.support.figures import called, cut_off, eight, line, make, record

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.system
PARTS = (
    "attention.stream", "mlp.out", "attention.branch.query.norm_qk", "attention.key_rotated",
    "attention.scores", "mlp.hidden", "mlp.norm_in.sum",
)  # fmt: skip
ROOT = Path(__file__).parent.parent.parent
TALLEST = 10.0
"""Inches: less than a page."""
LONG = "a label that is far longer than those of the experiments here, layers 12"


def wide_line(step, scale):
    """A look at a model with every kind of site."""
    found = line(step, scale)
    kinds = [f"{s}.{k}" for s in ("attention", "mlp") for k in ("norm_in", "norm_out", "post_norm")]
    kinds += [f"attention.branch.{p}.norm_qk" for p in ("query", "key")] + ["mlp.sub_norm"]
    (size, *_), (vector, *_) = found["sites"].values(), found["vectors"].values()
    for kind in kinds:
        for i in range(2):
            found["sites"][f"blocks.{i}.{kind}"] = size
            found["vectors"][f"blocks.{i}.{kind}.weight"] = vector
    return found


def written(module, monkeypatch, draw):
    """What a function would save, by file name."""
    made = {}
    monkeypatch.setattr(module, "save", lambda fig, path: made.setdefault(path.name, fig) and [])
    draw()
    return made


@pytest.fixture
def of_runs(tmp_path, monkeypatch):
    """Of four series with every kind of site."""
    found = eight(tmp_path) + [make(tmp_path, p, 1e-3, 0, 5.0) for p in ("post", "sub")]
    monkeypatch.setattr(type(found[0]), "diagnostics", [wide_line(0, 1.0), wide_line(4, 1e4)])
    return written(runs, monkeypatch, lambda: plots.run_figures(found, Path()))


@pytest.fixture
def of_records(monkeypatch):
    """Of 26 models and of one in 26 columns, the names long."""
    scaled = dict.fromkeys(("fp16:pairwise+slanc",), (5.0, [[2.0], [8.0]], 1.0))
    models = [
        called(record(p, 0.01, scaled.get(p, (None,) * 3)), f"{LONG} {i}")
        for i in range(26) for p in ("fp32", "fp16:pairwise", *scaled)
    ]  # fmt: skip
    one = [record("fp32"), *(record(f"e5m{i % 20 + 1}:lanes{2 + i}", 10.0**i) for i in range(26))]

    def draw():
        plots.record_figures(models, Path())
        plots.record_figures(one, Path())
        plots.record_figures(models[:6], Path(), each=True)

    return written(records, monkeypatch, draw)


def faults(figures):
    """By name what is wrong with each."""
    found = {}
    for name, made in figures.items():
        wrong = cut_off(made)
        wrong += [f"{made.get_figheight():.1f} in tall"] * bool(made.get_figheight() > TALLEST)
        titled = made.get_suptitle() or any(ax.get_title() for ax in made.axes)
        found[name] = wrong + ["no title"] * (not titled)
    return {name: wrong for name, wrong in found.items() if wrong}


def test_figures_of_runs_are_whole(of_runs):
    assert {"sites-2", "sites-training-2", "weights-2"} <= of_runs.keys()
    assert faults(of_runs) == {}


def test_figures_of_records_are_whole(of_records):
    kinds = {name.rpartition("-")[2] for name in of_records}
    assert kinds >= {"models", "delta", "sums", "scales"}
    assert faults(of_records) == {}


def test_one_panel_under_a_long_legend_is_whole(tmp_path):
    """The legend has the columns that fit, or the figure is wider."""
    found = [dataclasses.replace(s, label=f"{s.label} {LONG}") for s in series(eight(tmp_path))]
    made = {"one": plots.loss_figure(found), "grid": plots.vectors_figure(found[:1])}
    assert faults(made) == {}


def test_a_figure_of_ranges_is_whole():
    names = ["embed", *(f"blocks.{i}.{part}" for i in range(30) for part in PARTS), "logits"]
    tensors = [TensorRange(n, 10.0**k, 0.0, 0, 0, "a", 0.0, 0.0) for k, n in enumerate(names)]
    found = RangeReport(LONG, "fp16", 4096, tensors, None, None, [], 20.0)
    made = plots.ranges_figure(found)
    assert len(made.axes[0].get_lines()) == 8 + 1  # each kind, and the format's largest
    assert faults({"ranges": made}) == {}


def test_every_figure_function_is_measured_here():
    """By way of the two that draw all of them."""
    drawn = Path(records.__file__).read_text() + Path(runs.__file__).read_text()
    drawn += Path(__file__).read_text()
    assert [n for n in plots.__all__ if n.endswith("_figure") and n not in drawn] == []


def test_pictures_that_scripts_draw_are_whole():
    drawn = runpy.run_path(str(ROOT / "docs/results/figures/draw.py"))["DRAWN"]
    assert faults({name: draw() for name, draw in drawn.items()}) == {}
    draw = runpy.run_path(str(ROOT / "benchmarks/numerics_error.py"))["drawn"]
    with (ROOT / "benchmarks/results/numerics_error_recorded.csv").open() as file:
        rows = [r | {"d": int(r["d"]), "worst": float(r["worst"])} for r in csv.DictReader(file)]
    made = draw(rows, "rows")
    assert all(np.isfinite(ln.get_ydata()).any() for ln in made.axes[0].get_lines())
    assert faults({"errors": made}) == {}
