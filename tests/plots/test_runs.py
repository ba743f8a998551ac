"""Figures of training runs: what is drawn is what the runs logged."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from normlab import plots
from normlab.commands.figures import main
from normlab.plots import (
    depth_figure,
    figure,
    gradient_figure,
    loss_figure,
    run_figures,
    series,
    sites_figure,
    sites_training_figure,
    training_figure,
    vectors_figure,
    vectors_training_figure,
)
from normlab.plots.panels import largest
from normlab.plots.series import last_loss
from normlab.plots.sites import site_kinds
from normlab.plots.style import logarithmic
from normlab.plots.vectors import _ends, _vectors, vector_kinds
from tests.support.figures import eight, line, make

pytestmark = pytest.mark.system

pytest.importorskip("matplotlib")
DRAWN = {
    "loss-lr": loss_figure, "depth": depth_figure, "training": training_figure,
    "gradients": gradient_figure, "sites": sites_figure, "sites-training": sites_training_figure,
    "weights": vectors_figure, "weights-training": vectors_training_figure,
}  # fmt: skip
"""By the name of its file."""


@pytest.fixture
def fresh(tmp_path):
    """The runs, for who changes them."""
    return eight(tmp_path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs as they are."""
    return eight(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def figures(runs):
    """Each figure, drawn once."""
    return {name: draw(series(runs)) for name, draw in DRAWN.items()}


@pytest.fixture
def names(monkeypatch):
    """Names of the figures that runs give: drawn, and not written."""
    monkeypatch.setattr(plots.runs, "save", lambda made, path: [path])
    return lambda given: {path.name for path in run_figures(given, Path("out"))}


def drawn(ax):
    """The lines of an axis by label."""
    return {text.get_label(): text for text in ax.get_lines()}


def test_runs_that_differ_in_rate_and_seed_belong_together(runs, tmp_path):
    found = series(reversed(runs))
    assert [s.label for s in found] == ["peri", "pre"]
    assert [list(s.runs) for s in found] == [[1e-3, 1e-2]] * 2
    assert [r.read("config.yaml")["seed"] for r in found[0].runs[1e-2]] == [0, 1]
    assert found[0].best == 1e-2
    assert found[1].best == 1e-3  # the other one diverged
    under_way = make(tmp_path, "post", 1e-3, 0, 5.0, state="running")
    assert [s.label for s in series([*runs, under_way])] == ["pre", "peri"]
    assert [s.label for s in series(runs[:4])] == ["rmsnorm pre"]


def test_the_best_rate_is_that_of_the_best_validation_loss_as_in_the_table(fresh):
    """Whatever became of it behind that."""
    for run in fresh[4:6]:
        run.write("record.json", run.record | {"best_valid_loss": 3.0})
    (peri,) = (s for s in series(fresh) if s.label == "peri")
    assert peri.best == 1e-3


def test_switches_of_one_name_in_two_groups_are_told_apart(tmp_path):
    made = []
    for i, (norm, model) in enumerate([(True, False), (False, True), (True, True), (False, False)]):
        run = make(tmp_path, "pre", 1e-3, i, 5.0)
        config = run.read("config.yaml") | {"model": {"bias": model}, "seed": 0}
        run.write("config.yaml", config | {"norm": {"type": "rmsnorm", "bias": norm}})
        made.append(run)
    found = {
        s.label: [run.directory for held in s.runs.values() for run in held] for s in series(made)
    }
    names = ["norm.bias", "model.bias", "norm.bias, model.bias", "rmsnorm pre"]
    assert found == {name: [run.directory] for name, run in zip(names, made, strict=True)}


def test_what_only_one_type_has_sets_its_runs_apart(runs, tmp_path):
    made = []
    for i, alpha in enumerate((0.5, 1.0)):
        run = make(tmp_path, "pre", 1e-3, i, 5.0)
        run.write(
            "config.yaml", run.read("config.yaml") | {"norm": {"type": "dyt", "alpha": alpha}}
        )
        made.append(run)
    labels = {s.label for s in series([*runs, *made])}
    assert labels == {"rmsnorm pre", "rmsnorm peri", "dyt pre, alpha 0.5", "dyt pre, alpha 1"}


def test_a_run_that_nobody_watched_has_no_sum_of_squares_and_did_not_diverge(fresh):
    for run in fresh[4:]:
        run["diagnostics.jsonl"].unlink()
    made = loss_figure(series(fresh[:2] + fresh[4:]))
    assert "diverged" not in made.get_suptitle()
    assert not [line for line in made.axes[1].get_lines() if line.get_marker() == "x"]


def test_loss_against_rate_marks_what_diverged(runs, figures):
    ax, largest_square = figures["loss-lr"].axes
    assert drawn(ax)["peri"].get_ydata().tolist() == [6.5, 4.5]
    mean = drawn(ax)["pre"].get_ydata()
    assert mean[0] == 5.5
    assert math.isnan(mean[1])
    assert drawn(largest_square)["pre"].get_ydata().tolist() == [96000.0, 96000.0]  # 3 · 32 · 1000
    crosses = [made for made in ax.get_lines() if made.get_marker() == "x"]
    assert len(crosses) == 1
    assert crosses[0].get_xdata()[0] == pytest.approx(1e-2, rel=0.1)
    assert last_loss(runs[3]) == math.inf


def test_what_frequencies_alone_give_is_a_line_where_all_runs_read_the_same_text(fresh):
    for run in fresh:
        run.write("record.json", run.record | {"unigram_valid_loss": 6.25})
    ax = loss_figure(series(fresh)).axes[0]
    assert [n for n in ax.get_lines() if list(n.get_ydata()) == [6.25, 6.25]]
    fresh[0].write("record.json", fresh[0].record | {"unigram_valid_loss": 6.0})
    ax = loss_figure(series(fresh)).axes[0]
    assert not [n for n in ax.get_lines() if n.get_linestyle() == "--"]


def test_depth_shows_the_stream_and_half_precisions_edge(figures):
    axes = figures["depth"].axes
    assert drawn(axes[0])["pre"].get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert drawn(axes[1])["pre"].get_ydata().tolist() == [1000.0, 2000.0, 3000.0]
    assert drawn(axes[5])["peri"].get_ydata().tolist() == [64.0, 128.0, 192.0]
    edges = [any(np.all(np.array(n.get_ydata()) == 65504) for n in ax.get_lines()) for ax in axes]
    assert edges == [False, False, True, True, True, True]


def test_blocks_are_whole_and_names_stay_inside(figures):
    figures["depth"].draw_without_rendering()
    for name in ("depth", "gradients", "weights"):
        for ax in figures[name].axes:
            low, high = ax.get_xlim()
            shown = [x for x in ax.get_xticks() if low <= x <= high]
            assert shown
            assert all(x == int(x) for x in shown)
    ax = figures["depth"].axes[5]
    (name,) = ax.texts
    box, written = ax.get_window_extent(), name.get_window_extent()
    assert box.x0 < written.x0
    assert written.y1 <= box.y1


def test_a_short_logarithmic_axis_has_plain_numbers(figures):
    made, ((long, short),) = figure(1, 2, (7.2, 2.7))
    for ax, ends in ((long, (1, 1e5)), (short, (0.0008, 0.007))):
        logarithmic(ax)
        ax.set_ylim(ends)
    made.draw_without_rendering()
    long, short = (
        [t.get_text() for t in (*ax.get_yticklabels(), *ax.get_yticklabels(minor=True))]
        for ax in (long, short)
    )
    assert {"0.001", "0.002", "0.006"} <= set(short)
    assert not any("times" in text for text in short)
    assert any("10^{4}" in text for text in long)
    formatter = type(ax.yaxis.get_major_formatter())
    for ax in (*figures["training"].axes, *figures["depth"].axes):
        assert isinstance(ax.yaxis.get_minor_formatter(), formatter)


def test_a_best_rate_is_named_where_there_were_several(runs, figures):
    chosen = "at its best learning rate"
    for name in DRAWN.keys() - {"loss-lr"}:
        assert chosen in figures[name].get_suptitle()
    assert "best" not in gradient_figure(series([runs[0], runs[4]])).get_suptitle()


def test_the_title_explains_the_marks_that_are_there(runs, figures):
    named = "Validation loss by learning rate, and size of the residual stream"
    title = f"{named}\nbars: seeds; line: their mean"
    crossed = f"{title}; × on the edge: a seed diverged or failed"
    assert figures["loss-lr"].get_suptitle() == crossed
    assert loss_figure(series(runs[4:])).get_suptitle() == title
    assert loss_figure(series(runs[4::2])).get_suptitle() == named


def test_training_shows_each_look(figures):
    axes = figures["training"].axes
    assert drawn(axes[0])["peri"].get_xdata().tolist() == [0, 4]
    assert drawn(axes[0])["peri"].get_ydata().tolist() == [3.0, 6.0]
    assert drawn(axes[1])["peri"].get_ydata().tolist() == [9.0, 18.0]
    assert drawn(axes[2])["peri"].get_ydata().tolist() == [2.0, 4.0]
    np.testing.assert_allclose(drawn(axes[3])["peri"].get_ydata(), [np.nan, 0.2])


@pytest.mark.system
def test_what_is_no_number_is_not_hidden_behind_a_smaller_one(fresh):
    """Whichever of the blocks it is in."""
    assert largest([None, 2.0]) == largest([2.0, None]) == math.inf
    assert largest([1.0, 2.0, 1.5]) == 2.0
    look = line(4, 2.0)
    look["stream"][0]["max_abs"] = look["blocks"][-1]["attention_score"] = None
    look["sites"]["blocks.0.mlp.norm_in"]["max_abs"] = None
    look["vectors"]["blocks.1.mlp.norm_in.weight"]["min"] = None
    for run in fresh[4:]:
        run["diagnostics.jsonl"].write_text(
            json.dumps(line(0, 1.0)) + "\n" + json.dumps(look) + "\n"
        )
    found = series(fresh)
    axes = training_figure(found).axes
    assert drawn(axes[1])["peri"].get_ydata().tolist() == [9.0, math.inf]
    assert drawn(axes[2])["peri"].get_ydata().tolist() == [2.0, math.inf]
    (made := sites_training_figure(found)).draw_without_rendering()
    assert drawn(made.axes[3])["peri"].get_ydata().tolist() == [6.0, math.inf]
    held = [_vectors(look)["mlp.norm_in.weight"] for look in found[1].diagnostics]
    assert [math.isnan(low) for _, low, _ in map(_ends, held)] == [False, True]
    assert math.isnan(_ends(dict(reversed(held[1].items())))[1])


def test_gradients_are_those_of_blocks(figures):
    first, last = figures["gradients"].axes
    assert drawn(first)["pre"].get_ydata().tolist() == [0.5, 0.25]
    assert drawn(last)["pre"].get_ydata().tolist() == [500.0, 250.0]


def test_gains_are_shown_by_kind_and_biases_are_not(runs, figures):
    inside = ["attention.query.norm_qk.weight", "mlp.norm_in.weight"]
    assert vector_kinds(series(runs)) == [*inside, "norm_final.weight"]
    axes = figures["weights"].axes
    assert [ax.get_title() for ax in axes] == inside
    assert "least to largest" in axes[0].get_ylabel()
    (bars, *_) = axes[1].containers
    assert bars[0].get_ydata().tolist() == [1.0, 2.0]


def test_gains_over_training_are_the_blocks_mean_and_all_their_values(runs, figures):
    axes = {ax.get_title(): ax for ax in figures["weights-training"].axes}
    assert drawn(axes["mlp.norm_in.weight"])["pre"].get_ydata().tolist() == [1.5, 1.5]
    final = axes["norm_final.weight"]
    assert drawn(final)["peri"].get_xdata().tolist() == [0, 4]
    assert drawn(final)["peri"].get_ydata().tolist() == [1.0, 2.0]
    band = final.collections[[s.label for s in series(runs)].index("peri")].get_paths()[0]
    assert band.get_extents().extents.tolist() == [0.0, -1.0, 4.0, 4.0]


def test_what_norms_read_is_shown_by_kind_over_depth_and_over_training(runs, figures):
    inside = ["attention.query.norm_qk", "mlp.norm_in"]
    assert site_kinds(series(runs)) == [*inside, "norm_final"]
    axes = figures["sites"].axes
    assert [ax.get_title() for ax in axes[::2]] == [f"{kind}: mean x²" for kind in inside]
    assert drawn(axes[0])["peri"].get_xdata().tolist() == [1]  # block 0 has none
    assert drawn(axes[2])["peri"].get_ydata().tolist() == [2.0, 4.0]
    assert drawn(axes[3])["peri"].get_ydata().tolist() == [6.0, 12.0]
    axes = figures["sites-training"].axes
    assert drawn(axes[2])["peri"].get_ydata().tolist() == [2.0, 4.0]  # the largest of two blocks
    assert drawn(axes[5])["peri"].get_ydata().tolist() == [15.0, 30.0]  # norm_final's largest |x|
    edges = [np.all(np.array(n.get_ydata()) == 65504) for n in axes[3].get_lines()]
    assert any(edges)  # 6,000 lies within 2⁵ of half precision's largest number
    assert not any(np.all(np.array(n.get_ydata()) == 65504) for n in axes[2].get_lines())


@pytest.mark.system
def test_figures_are_of_what_there_is(fresh, names):
    """Without norms there are neither sites nor norm weights, unwatched runs give a loss alone."""
    assert names(fresh) == DRAWN.keys()
    for run in fresh:
        bare = [look | {"sites": {}, "vectors": {}} for look in run.diagnostics]
        run["diagnostics.jsonl"].write_text("".join(json.dumps(look) + "\n" for look in bare))
    assert names(fresh) == {"loss-lr", "depth", "training", "gradients"}
    for run in fresh:
        run["diagnostics.jsonl"].unlink()
    assert names(fresh) == {"loss-lr"}
    assert names(fresh[:2]) == set()


def test_a_run_alone_is_one_of_one(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        "normlab.commands.figures.run_figures", lambda r, out: given.extend(r) or [out]
    )
    run = make(tmp_path / "a", "pre", 1e-3, 0, 3.0)
    main([str(run.directory)])
    assert [one.directory for one in given] == [run.directory]


@pytest.mark.system
def test_the_command_draws_a_directory_of_runs(fresh, tmp_path):
    main([str(tmp_path)])
    files = {p.name for p in (tmp_path / "figures").iterdir()}
    assert files == {f"{name}.{kind}" for name in DRAWN for kind in ("svg", "png")}
