"""Figures: files that are there, and pictures that show what the records say."""

import builtins
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from normlab.commands.figures import main
from normlab.numerics.histogram import edges
from normlab.plots import (
    delta_figure,
    models_figure,
    record_figures,
    records,
    save,
    scales_figure,
    sums_figure,
)
from normlab.plots.scales import SiteNorms, panels
from normlab.plots.sums import above, counts
from normlab.results import RecordFile
from tests.support.figures import called, histogram, record
from tests.support.records import grouped

pytest.importorskip("matplotlib")
BASE = "m-d-valid-window8"
RECORDS = [
    record("fp32"),
    record("fp16:pairwise", 4000.0),
    record("fp16:pairwise+slanc", -0.002, (5.0, [[2.0], [8.0]], 1.0)),
    record("fp16+slanc", float("nan"), (5.0, 3.0, 1.0)),
]
NOTHING = grouped("n", "n", status="n/a")
FIGURES = {
    "delta",
    *("fp16-pairwise-sums", "fp16-pairwise-slanc-sums", "fp16-pairwise-slanc-scales"),
    *("fp16-slanc-sums", "fp16-slanc-scales"),
}


@pytest.fixture
def names(monkeypatch):
    """Names of the figures that records give: drawn, and not written."""
    monkeypatch.setattr(records, "save", lambda made, path: [path])
    return lambda given, **more: [p.name for p in record_figures(given, Path("out"), **more)]


@pytest.fixture(scope="module")
def scales():
    return scales_figure(RECORDS[0], RECORDS[2])


@pytest.fixture(scope="module")
def delta():
    return delta_figure(RECORDS[1:])


@pytest.mark.system
def test_the_command_draws_a_directory_of_records(tmp_path, capsys):
    for r in (RECORDS[0], RECORDS[2], NOTHING):
        RecordFile(tmp_path / "records.jsonl").add(r)
    main([str(tmp_path)])
    files = list((tmp_path / "figures").iterdir())
    drawn = {name for name in FIGURES if "fp16-pairwise-slanc" in name} | {"delta"}
    assert {f.name for f in files} == {
        f"{BASE}-{what}.{kind}" for what in drawn for kind in ("svg", "png")
    }
    assert all(f.stat().st_size > 5000 for f in files)
    assert BASE in capsys.readouterr().out


@pytest.mark.system
def test_a_figure_is_written_twice_alike_as_svg_and_png(delta, tmp_path):
    svg, png = save(delta, tmp_path / "new" / "a")
    again, _ = save(delta_figure(RECORDS[1:]), tmp_path / "b")
    assert (svg.name, png.name) == ("a.svg", "a.png")
    assert svg.read_bytes() == again.read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")
    assert min(f.stat().st_size for f in (svg, png)) > 5000


def test_each_column_of_each_model_has_its_figures(names):
    assert set(names([*RECORDS, NOTHING])) == {f"{BASE}-{what}" for what in FIGURES}


@pytest.mark.system
def test_a_datapath_that_is_not_registered_is_drawn_by_what_the_record_kept(names):
    """A user's own, whose file is named for the evaluation and not for its figures."""
    kept = replace(RECORDS[2].provenance, datapath={"sum": "bf16:lanes8"})
    own = replace(RECORDS[2], precision="not-here+slanc", provenance=kept)
    found = names([called(r, name) for name in "ab" for r in (RECORDS[0], own)], each=True)
    assert {"sums", "scales", "models"} <= {name.rsplit("-", 1)[-1] for name in found}
    assert own.format == replace(RECORDS[2], precision="bf16+slanc").format


def several(*names):
    """What FP16 makes of models of these names."""
    return [called(r, name) for name in names for r in RECORDS[:2]]


@pytest.mark.system
def test_several_models_are_one_figure_and_each_its_own_where_it_is_asked_for(names):
    assert names(several("a", "b")) == ["d-valid-window8-models"]
    own = {f"{m}-d-valid-window8-{what}" for m in "ab" for what in ("delta", "fp16-pairwise-sums")}
    assert set(names(several("a", "b"), each=True)) == {"d-valid-window8-models", *own}
    many = several(*(f"m{i}" for i in range(30)))
    assert names(many) == ["d-valid-window8-models", "d-valid-window8-models-2"]


def test_the_figure_of_several_models_shows_their_numbers():
    records = {name: {r.precision: r for r in several(name)} for name in "ab"}
    lost = replace(RECORDS[3], precision="fp16:pairwise")
    values, deltas, rows = models_figure(records | {"c": {"fp16:pairwise": lost}}).axes
    assert [t.get_text() for t in values.get_yticklabels()] == ["a", "b", "c"]
    assert [line.get_xdata()[0] for line in values.get_lines()] == [20.0, 20.0]
    (points,) = deltas.containers
    np.testing.assert_array_equal(points.lines[0].get_xdata(), [4000.0, 4000.0, np.nan])
    assert deltas.get_title().startswith("×")
    assert 65504 in [line.get_xdata()[0] for line in rows.get_lines()]


def test_scales_and_norms_are_those_of_the_records(scales):
    blocks, others = scales.axes
    lines = {line.get_label(): line.get_ydata() for line in blocks.get_lines()}
    seen = [RECORDS[0].ranges.sites[f"blocks.{i}.attention.norm_in"] for i in range(2)]
    np.testing.assert_allclose(lines["largest ‖x‖"], [s["max_norm"] for s in seen])
    np.testing.assert_allclose(lines["scale s"], [5.0, 4.0])  # of two heads the geometric mean
    (median,) = (y for name, y in lines.items() if name.startswith("median"))
    np.testing.assert_allclose(median, [s["median_norm"] for s in seen])
    # What every head serves: from 2⁻¹² times the largest scale to √65504 times the least.
    wide = blocks.collections[0].get_paths()[0].vertices[:, 1]
    assert wide.max() == pytest.approx(5 * np.sqrt(65504))
    second = blocks.collections[0].get_paths()[0].vertices
    second = second[second[:, 0] > 0.6][:, 1]
    assert [second.min(), second.max()] == pytest.approx([8 * 2.0**-12, 2 * np.sqrt(65504)])
    assert [t.get_text() for t in others.get_xticklabels()] == ["norm_final"]


def test_a_band_has_the_colour_that_the_legend_shows(scales):
    swatches = [patch.get_facecolor() for patch in scales.legends[0].get_patches()]
    bands = [tuple(band.get_facecolor()[0]) for band in scales.axes[0].collections[:2]]
    assert swatches == bands
    assert [colour[3] for colour in bands] == [1.0, 1.0]  # laid on one another they don't mix
    grey = [np.dot(colour[:3], (0.299, 0.587, 0.114)) for colour in bands]
    assert grey[0] - grey[1] > 0.15


def test_blocks_stand_in_order_of_depth():
    given = sorted(f"blocks.{i}.mlp.norm_in" for i in range(12))
    (held,) = panels([SiteNorms(n, 1, 1, 1, np.ones(1)) for n in given]).values()
    assert [int(label) for label, _ in held] == list(range(12))


def test_histograms_are_those_of_the_records_one_without_a_scale():
    for given, shown in ((RECORDS[2], ("squares", "sums")), (RECORDS[1], ("sums",))):
        axes = sums_figure(given).axes
        for ax, name in zip(axes, shown, strict=True):
            held = counts(given, name)
            assert held.sum() == 300
            drawn = ax.patches[0].get_data()
            np.testing.assert_allclose(drawn.values, held / 300)
            np.testing.assert_allclose(drawn.edges[:-1], edges())
            lines = [line.get_xdata()[0] for line in ax.get_lines()]
            assert lines == pytest.approx([-24, -14, np.log2(65504)])
    assert axes[0].get_title("left").startswith("‖x‖²  ")


@pytest.mark.parametrize("precision", ["fp16:pairwise", "bf16:pairwise", "fp32", "e4m3"])
def test_what_is_written_at_the_edges_is_inside(precision):
    made = sums_figure(replace(RECORDS[1], precision=precision))
    made.draw_without_rendering()
    (ax,) = made.axes
    box = ax.get_window_extent()
    assert ax.texts
    for text in ax.texts:
        written = text.get_window_extent()
        assert box.x0 <= written.x0
        assert written.x1 <= box.x1


def test_the_share_above_an_edge():
    held = histogram(np.array([1.0, 2.0, 4.0, 1000.0]))
    assert above(held, 2.0) == 0.75
    assert above(held, 2.0 ** (1 / 8)) == pytest.approx(3.5 / 4)  # half of the first one's bin
    assert above(held, 4.0 * 2 ** (1 / 8)) == pytest.approx(1.5 / 4)


def test_differences_are_those_of_the_records(delta):
    ax = delta.axes[0]
    (points,) = (c for c in ax.containers)
    np.testing.assert_array_equal(points.lines[0].get_xdata(), [4000.0, -0.002, np.nan])
    assert [t.get_text() for t in ax.get_yticklabels()] == [r.precision for r in RECORDS[1:]]
    said = " ".join(t.get_text() for t in ax.texts)
    assert "overflow 10.00%" in said
    assert "perplexity nan" in said


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'normlab\[plots\]'"):
        delta_figure(RECORDS[1:])


def test_a_record_whose_rows_are_all_nan_is_drawn_empty(names):
    """As where a low-precision model gives no number from the first norm on."""
    none = {"first": 0.0, "counts": []}
    rows = {"median_norm": None, "max_norm": float("nan"), "squares": none, "sums": none}
    sites = {name: rows | {"scale": 2.0} for name in RECORDS[3].ranges.sites}
    lost = replace(RECORDS[3], ranges=replace(RECORDS[3].ranges, sites=sites))
    assert set(names([lost])) == {f"{BASE}-delta", f"{BASE}-fp16-slanc-sums"}
    sums_figure(lost).draw_without_rendering()


@pytest.mark.parametrize("field", ["sha256", "tokenizer_hash", "protocol_version"])
def test_what_does_not_compare_shares_no_figure(names, field):
    one, other = (replace(RECORDS[1], precision=p) for p in ("fp16", "bf16"))
    found = names([one, replace(other, text=replace(other.text, **{field: 2})), one])
    assert found == [
        f"{BASE}-delta", f"{BASE}-fp16-sums", f"{BASE}-2-delta", f"{BASE}-2-bf16-sums"
    ]  # fmt: skip


def test_a_directory_without_records_is_refused(tmp_path):
    RecordFile(tmp_path / "records.jsonl").add(NOTHING)
    with pytest.raises(SystemExit, match="nothing to draw in .*: expected a record with"):
        main([str(tmp_path)])
    (tmp_path / "records.jsonl").unlink()
    with pytest.raises(SystemExit, match="holds no records"):
        main([str(tmp_path)])
