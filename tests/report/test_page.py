"""The report: complete, self-contained, escaped, and every number leads to its record."""

import re
from html.parser import HTMLParser

import pytest

from normlab.commands.report import main
from normlab.report.axes import linear
from normlab.report.charts import POINTS, Frame, Line, look, thinned
from normlab.report.curves import ABOVE_START, sweeps, told_apart
from normlab.report.markup import anchor, element
from normlab.report.numbers import differing
from normlab.report.page import page
from normlab.report.papers import command
from normlab.report.ranges import in_order, spans
from normlab.report.sources import Trained, read
from tests.support.report_sources import (
    HOSTILE,
    record,
    site,
    write_records,
    write_run,
    write_watch,
)

VOID = ("meta", "link")


class Reader(HTMLParser):
    """A page's elements as (tag, attributes, text inside); fails where tags don't nest."""

    def __init__(self, text):
        super().__init__()
        self.found, self._open = [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.found.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, inside in self._open:
            inside.append(data)

    def all(self, tag, **attributes):
        return [
            (dict(a), "".join(inside))
            for t, a, inside in self.found
            if t == tag and all(a.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four runs (three rates and a diverged one), and records of two of them."""
    folder = tmp_path_factory.mktemp("report")
    runs = folder / "runs"
    write_watch(write_run(runs, "a", lr=1e-3, loss=3.0))
    write_run(runs, "b", lr=1e-2, loss=2.5)
    write_run(runs, "c", lr=1e-1, loss=2.8, state="diverged")
    write_run(runs, "d", norm=HOSTILE, lr=1e-2, loss=2.9)
    write_records(
        folder / "out",
        record("a"), record("a", "fp16", 900.0, overflowed=7), record("a", "fp16+slanc", 20.1),
        record("b", perplexity=18.0), record("b", "fp16", status="n/a"),
        record("c", status="diverged"), record(HOSTILE, perplexity=float("inf")),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def made(folder):
    return page(read([folder / "out", folder / "runs"]), f"title {HOSTILE}")


@pytest.fixture(scope="module")
def reader(made):
    return Reader(made)


def test_the_page_asks_the_network_for_nothing(reader, made):
    for _, attributes, _ in reader.found:
        assert not {"src", "srcset", "action", "onclick"} & set(attributes)
        assert attributes.get("href", "#").startswith(("#", "data:"))
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", made)


def test_what_comes_from_files_is_escaped(reader, made):
    assert HOSTILE not in made
    assert len(reader.all("script")) == 1
    assert not reader.all("b")
    assert any(HOSTILE in text for _, text in reader.all("td"))
    assert reader.all("h1")[0][1] == f"title {HOSTILE}"


def test_every_link_has_its_end_and_every_id_is_one(reader):
    ids = [a["id"] for _, a, _ in reader.found if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a, _ in reader.all("a")]
    assert {link.removeprefix("#") for link in links} <= set(ids)


@pytest.mark.parametrize(
    ("model", "precision", "shown"),
    [("a", "fp32", "20.000"), ("a", "fp16", "900.000"), ("b", "fp16", "n/a"),
     ("c", "fp32", "diverged"), (HOSTILE, "fp32", "inf")],
)  # fmt: skip
def test_every_number_leads_to_its_record(reader, model, precision, shown):
    name = anchor("record", f"{model}-{precision}")
    assert (({"href": f"#{name}"}), shown) in reader.all("a")
    ((_, told),) = reader.all("details", id=name)
    for fact in (f"precision=[{precision}]", "f" * 64, "e" * 64, "abc-dirty", "1 x cpu", "jax 1"):
        assert fact in told


def test_a_record_says_what_asks_for_it_again(reader):
    ((_, told),) = reader.all("details", id=anchor("record", "a-fp16+slanc"))
    command = "python -m evaluate run=runs/a 'precision=[fp16+slanc]' data.corpus=embedded"
    assert command in told


def test_what_asks_for_it_again_names_calibration_and_mesh():
    mesh = {"data": 2, "model": 1, "shard_parameters": True, "processes": 1}
    asked = command(
        record("a", "fp16+calibrated", calibration={"split": "valid", "windows": 32},
               provenance={"mesh": mesh})
    )  # fmt: skip
    words = re.sub("<[^>]*>", "", asked).split()
    assert words[-4:] == [
        "calibration_windows=32", "mesh.data=2", "mesh.model=1", "mesh.shard_parameters=True",
    ]  # fmt: skip
    assert "calibration" not in command(record("a"))
    assert "mesh" not in command(record("a"))


def test_columns_sort_by_numbers_and_what_has_none_is_last(reader):
    cells = [a for a, text in reader.all("td") if text in ("20.000", "18.000", "inf")]
    assert [c["data-order"] for c in cells] == ["20.0", "18.0", "Infinity"]
    assert all("data-order" not in a for a, text in reader.all("td") if text == "n/a")


def test_a_diverged_run_is_a_row_and_a_cross(reader):
    assert (({"class": "bad"}), "diverged") in reader.all("span")
    titles = [text for _, text in reader.all("title")]
    assert "c: diverged at step 23" in titles
    assert "c: learning rate 0.1, seed 0, diverged, best validation loss 3.9000" in titles


def test_overflows_are_said_where_they_were(reader):
    assert (({"class": "bad"}), "overflow 7") in reader.all("small")
    assert (({"class": "bad"}), "7 overflowed, 0 vanished of 36 rows") in reader.all("small")
    (lost,) = [t for _, t in reader.all("title") if "rows overflowed" in t]
    assert lost.startswith("blocks.2.mlp.norm_in: Σ 0.0625 … 0.5, median 0.177")
    assert lost.endswith("7 of 12 rows overflowed")


def test_lines_carry_the_values_that_were_logged(reader):
    (line,) = [a for a, text in reader.all("polyline") if text == "b" and "4.375" in a["data-y"]]
    assert line["data-x"] == "0 10 20 30 40"
    assert line["data-y"] == "5 4.375 3.75 3.125 2.5"
    assert len(line["points"].split()) == 5


def test_sections_are_those_that_have_something_to_say(folder, reader, tmp_path):
    assert [text for _, text in reader.all("h2")] == [
        "Perplexity", "Runs", "Loss", "Learning rates", "Ranges", "Inside", "Differences",
        "Provenance",
    ]  # fmt: skip
    write_run(tmp_path, "alone")
    alone = Reader(page(read([tmp_path]), "alone"))
    assert [text for _, text in alone.all("h2")] == ["Runs", "Loss", "Provenance"]


def test_watched_sizes_are_drawn_and_nulls_left_out(reader):
    labels = {a.get("data-y") for a, _ in reader.all("svg")}
    assert {"mean x²", "largest |x|"} <= labels
    lines = [a for a, text in reader.all("polyline") if text == "blocks.0.mlp.norm_in"]
    assert [a["data-y"] for a in lines] == ["", "4 4 4"]


def test_differences_are_the_fields_that_differ_where_they_are():
    configs = [
        {"norm.type": "a", "norm.eps": 1, "seed": 0, "runs": "x", "width": 8},
        {"norm.type": "b", "seed": 1, "runs": "y", "width": 8},
    ]
    assert differing(configs) == ["norm.type", "seed"]
    assert differing(configs[:1]) == []


def test_a_sweep_is_runs_that_differ_in_rate_and_seed_alone(folder):
    runs = read([folder / "runs"]).runs
    assert [[run.name for run in group] for group in sweeps(runs)] == [["a", "b", "c"]]
    assert sweeps(runs[:1]) == []


def test_the_axis_of_a_loss_is_not_the_divergences(tmp_path):
    run = write_run(tmp_path, "a", state="diverged")
    with run["metrics.jsonl"].open("a") as file:
        file.write('{"step": 22, "valid_loss": 1e9}\n')
    drawn = Reader(page(read([tmp_path]), "x"))
    ticks = [float(text) for _, text in drawn.all("text", class_="end")]
    assert 5.0 <= max(ticks) <= ABOVE_START * 5.0 + 0.5
    crosses = [a["d"] for a, _ in drawn.all("path") if "cross" in a.get("class", "")]
    tops = [float(path.split()[1].split("l")[0]) for path in crosses]
    assert len(tops) == 2
    assert min(tops) >= 0  # in sight, at the top


def test_an_evaluation_alone_tells_of_its_runs(tmp_path):
    config = {"norm": {"type": "rmsnorm"}, "optimizer": {"lr": 0.5}, "placement": {"type": "pre"}}
    training = {"state": "finished", "best_valid_perplexity": 12.5}
    write_records(tmp_path, record("a", facts={"config": config, "training": training}))
    (run,) = read([tmp_path]).runs
    assert (run.name, run.kind, run.state) == ("a", "rmsnorm pre", "finished")
    assert "12.500" in page(read([tmp_path]), "x")


def test_of_two_records_of_one_thing_the_later_one_counts(tmp_path):
    write_records(tmp_path, record("a", perplexity=1.0), record("a", perplexity=2.0))
    (found,) = read([tmp_path]).records
    assert found.perplexity == 2.0


def test_of_a_run_that_went_on_the_page_has_what_was_evaluated_last(tmp_path):
    config = {"norm": {"type": "rmsnorm"}, "optimizer": {"lr": 0.5}, "placement": {"type": "pre"}}

    def told(precision, weights, state):
        facts = {"source": "runs/a", "config": config, "training": {"state": state}}
        return record("a", precision, weights_sha256=weights, key=weights + precision, facts=facts)

    early = [told("fp32", "100", "running"), told("fp16", "100", "running")]
    write_records(tmp_path, *early, told("fp32", "200", "finished"))
    found = read([tmp_path])
    assert [r.weights_sha256 for r in found.records] == ["200"]
    assert [run.state for run in found.runs] == ["finished"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    for where in ("x", "y"):
        write_run(tmp_path / where, "a")
    assert [r.name for r in read([tmp_path / "x", tmp_path / "y"]).runs] == ["a", "a (2)"]


def test_the_same_input_is_the_same_page(folder, made):
    again = page(read([folder / "out", folder / "runs"]), f"title {HOSTILE}")
    assert again == made


def test_sites_are_in_the_order_of_the_forward_pass():
    sites = ["norm_final", "blocks.10.mlp.norm_in", "blocks.2.mlp.norm_in", "norm_embed",
             "blocks.2.attention.norm_in"]  # fmt: skip
    assert in_order(sites) == [sites[3], sites[4], sites[2], sites[1], sites[0]]


def test_a_site_that_saw_no_number_has_no_range():
    empty = {"first": 0.0, "counts": []}
    found = spans(record("a", sites={"x": site(sums=empty), "y": site(low=2.0, bins=4)}))
    assert found["x"] is None
    assert found["y"] == pytest.approx((4.0, 2**2.5, 8.0))


def test_long_lines_are_thinned_and_end_where_they_end():
    points = [(i, float(i)) for i in range(10 * POINTS + 3)]
    kept = thinned(points)
    assert len(kept) <= POINTS + 1
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thinned(points[:POINTS]) == points[:POINTS]


def test_a_point_lies_where_the_axes_say():
    frame = Frame(linear([0, 10], "x"), linear([0, 1], "y"))
    (left, floor), (right, top) = frame.place(0, 0), frame.place(10, 1)
    drawn = Reader(frame.line(Line("n", [(0, 0), (10, 1)])))
    ((line, _),) = drawn.all("polyline")
    assert line["points"] == f"{left:.1f},{floor:.1f} {right:.1f},{top:.1f}"
    assert left < right
    assert top < floor


def test_lines_that_share_a_colour_differ_in_their_dashes():
    assert len({look(i) for i in range(28)}) == 28


def runs_of(*configs):
    return [
        Trained(f"r{i}", {"norm.type": norm, "placement.type": "pre", "seed": i} | more, [], {},
                [], [], {})
        for i, (norm, more) in enumerate(configs)
    ]  # fmt: skip


def test_a_colour_a_norm_and_a_dash_a_rate_and_seeds_share_both():
    slow, fast = {"optimizer.lr": 1e-3}, {"optimizer.lr": 1e-2}
    looks, names = told_apart(runs_of(("a", slow), ("a", fast), ("b", slow), ("a", slow)))
    assert [look(n) for n in looks.values()] == ["c0", "c0 d1", "c1", "c0"]
    assert [name for _, name in names] == [
        "a pre, optimizer.lr 0.001", "a pre, optimizer.lr 0.01", "b pre, optimizer.lr 0.001",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("configs", "numbers", "names"),
    [
        ([("a", {}), ("a", {})], [0, 1], ["r0", "r1"]),
        ([("a", {}), ("b", {}), ("b", {})], [0, 1, 1], ["a pre", "b pre"]),
        ([("a", {"x": 1}), ("a", {"x": 2}), ("a", {"x": 1})], [0, 1, 0], ["x 1", "x 2"]),
    ],
)
def test_without_settings_or_without_kinds_colours_are_enough(configs, numbers, names):
    looks, legend = told_apart(runs_of(*configs))
    assert list(looks.values()) == numbers
    assert [name for _, name in legend] == names


def test_numbers_of_seeds_stand_at_the_right_and_sort(tmp_path):
    config = {"norm": {"type": "rmsnorm"}, "placement": {"type": "pre"}, "optimizer": {"lr": 0.1}}
    made = [
        record(f"{norm}{s}", norm=norm, perplexity=p + s, seed=s, facts={"config": config | {
            "seed": s, "norm": {"type": norm}}, "training": {"best_valid_loss": 3.0}})
        for s in (0, 2) for norm, p in (("a", 20.0), ("b", 100.0))
    ]  # fmt: skip
    write_records(tmp_path, *made)
    reader = Reader(page(read([tmp_path]), "x"))
    (cell,) = [a for a, text in reader.all("td") if text == "21.0 ± 1.4"]
    assert (cell["class"], cell["data-order"]) == ("number", "21.0")


def test_attributes_and_text_are_written_as_html():
    made = element(
        "a", "<", None, [1, "&"], class_='"', data_x=0, hidden=True, title=None, open=False
    )
    assert made == '<a class="&quot;" data-x="0" hidden>&lt;1&amp;</a>'


def test_the_command_writes_the_page_and_says_where(folder, tmp_path, capsys):
    main([str(folder), "--out", str(tmp_path / "new" / "r.html"), "--title", "T"])
    assert "<h1>T</h1>" in (tmp_path / "new" / "r.html").read_text()
    assert re.fullmatch(r"written to .*r\.html \(\d+ KiB\)\n", capsys.readouterr().out)
    write_run(tmp_path / "runs", "a")
    main([str(tmp_path / "runs")])
    assert (tmp_path / "runs" / "report.html").exists()


def broken_record(folder):
    write_records(folder, record("a"))
    with (folder / "records.jsonl").open("a") as file:
        file.write("{half\n")


def broken_metrics(folder):
    (write_run(folder, "a")["metrics.jsonl"]).write_text('{"step": 0}\n{"step"\n{}\n')


def broken_config(folder):
    (write_run(folder, "a")["config.yaml"]).write_text("a: [")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder.rmdir(), "no such directory"),
        (lambda folder: None, "holds neither runs (`python -m train` writes"),
        (lambda folder: (folder / "records.jsonl").touch(), "records.jsonl is empty"),
        (broken_record, "records.jsonl, line 2: "),
        (broken_metrics, "metrics.jsonl, line 2: "),
        (broken_config, "config.yaml can't be read: "),
    ],
)
def test_bad_input_is_refused_in_a_line_or_two(tmp_path, capsys, prepare, message):
    folder = tmp_path / "given"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(SystemExit) as end:
        main([str(folder)])
    printed = capsys.readouterr().err
    assert end.value.code == 2
    assert message in printed
    assert printed.count("\n") <= 2
