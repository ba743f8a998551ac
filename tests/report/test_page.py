"""The page: opens with the answer, escapes, folds, and asks the network for nothing."""

import json
import re

import pytest
from bs4 import BeautifulSoup

from normlab.commands.report import main
from normlab.report.charts import library
from normlab.report.page import page
from normlab.report.sources import read
from tests.support.report_sources import (
    HOSTILE,
    record,
    run_record,
    write_records,
    write_run,
    write_watch,
)

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two methods of two seeds and two rates, a hostile one, a diverged and a refused run."""
    folder = tmp_path_factory.mktemp("report")
    for norm, shift in (("rmsnorm", 0.0), ("layernorm", 0.5)):
        for seed in (0, 1):
            for lr in (1e-3, 1e-2):
                name = f"{norm}-{lr}-{seed}"
                loss = 3.0 + shift + 0.01 * seed + 10 * lr
                run = write_run(folder / "runs", name, norm, lr, seed, loss=loss)
                write_records(
                    folder / "out",
                    run_record(run, perplexity=20 + 10 * shift + seed / 4 + 100 * lr),
                    run_record(run, "fp16", 900.0, overflowed=7),
                )
    write_watch(run)
    write_run(folder / "runs", "bad", lr=1.0, state="diverged")
    refused = write_run(folder / "runs", "no", lr=2.0)
    refused["metrics.jsonl"].unlink()
    refused.write("record.json", {"state": "refused", "reason": f"ValueError: {HOSTILE}"})
    write_records(folder / "out", record(HOSTILE, perplexity=float("inf"), norm=HOSTILE))
    return folder


@pytest.fixture(scope="module")
def made(folder):
    return page(read([folder / "out", folder / "runs"]), f"title {HOSTILE}")


@pytest.fixture(scope="module")
def seen(made):
    return BeautifulSoup(made, "html.parser")


def rows(table):
    """A table's rows as lists of texts, its head first."""
    return [[cell.get_text(" ") for cell in row.select("th, td")] for row in table.select("tr")]


def test_the_page_opens_with_the_answer_and_one_table(seen):
    assert seen.select_one(".answer").text.startswith(
        "rmsnorm has the lowest test perplexity: 20.23 ± 0.18 (mean ± standard deviation over 2 "
        "seeds). The next, layernorm, has 25.23 ± 0.18; the difference is significant (Welch's t "
        "test, p = "
    )
    assert len(seen.select("header table")) == 1
    head, best, other = rows(seen.select_one("header table"))
    assert head == ["method", "perplexity", "p", "seeds", "learning rate", "fp16 (Δ)"]
    assert best[:5] == ["rmsnorm", "20.23 ± 0.18", "*", "2", "0.001 (best of 2, lowest)"]
    assert other[0] == "layernorm"


def test_the_page_asks_the_network_for_nothing(made, seen):
    for element in seen.find_all(True):
        assert not {"src", "srcset", "action", "onclick"} & set(element.attrs)
        assert element.get("href", "#").startswith(("#", "data:"))
    own = made.replace(library(), "")
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", own)
    assert not any("url" in spec["data"] for spec in specs(seen) if "data" in spec)


def specs(seen):
    """What the charts are drawn from."""
    return [json.loads(chart["data-spec"]) for chart in seen.select(".chart")]


def test_what_comes_from_files_is_escaped(made, seen):
    assert HOSTILE not in made
    assert len(seen.select("script")) == 2
    assert not seen.select("b")
    assert seen.h1.text == f"title {HOSTILE}"
    assert any(HOSTILE in row[0] for table in seen.select("table") for row in rows(table))
    assert f"refused: ValueError: {HOSTILE}" in seen.select_one("#failed").text


def test_individual_runs_are_folded_and_their_labels_name_what_differs(seen):
    assert not [d for d in seen.select("details") if d.has_attr("open")]
    (table,) = [t for t in seen.select("#provenance table") if "state" in rows(t)[0]]
    assert table.find_parent("details")
    assert rows(table)[1][0] == "rmsnorm, lr 0.001, seed 0 rmsnorm-0.001-0"


def test_runs_that_did_not_end_well_are_said_with_the_reason(seen):
    said = [item.text for item in seen.select("#failed li")]
    assert said[0] == "rmsnorm, lr 1, seed 0 (bad): diverged after 23 steps"
    assert "(no): refused: ValueError" in said[1]


def test_a_loss_shows_each_method_at_its_best_rate_and_all_runs_are_a_click_away(seen):
    first, folded, training = [
        json.loads(chart["data-spec"]) for chart in seen.select("#losses .chart")
    ]
    names = {row["name"] for row in first["data"]["values"]}
    assert names == {f"{n}, lr 0.001, seed {s} ({n}-0.001-{s})"
                     for n in ("rmsnorm", "layernorm") for s in (0, 1)}  # fmt: skip
    assert len({row["name"] for row in folded["layer"][0]["data"]["values"]}) == 9
    assert training["layer"][0]["data"]["values"][-1]["step"] == [10, 20, 30, 40]
    assert [row["step"] for row in folded["layer"][1]["data"]["values"]] == [20]
    assert not seen.select_one("#losses .chart").find_parent("details")
    assert seen.select("#losses .chart")[1].find_parent("details")


def test_rates_are_those_of_methods_with_several_and_a_cross_has_a_loss(seen):
    (spec,) = [json.loads(chart["data-spec"]) for chart in seen.select("#rates .chart")]
    found = {(row["rate"], row["diverged"]) for row in spec["data"]["values"]}
    assert found == {(1e-3, False), (1e-2, False), (1.0, True)}


def test_a_table_has_only_its_own_models_columns(tmp_path):
    write_records(
        tmp_path, record("a"), record("a", "fp16"),
        record("b", "fp32", split="valid"), record("b", "bf16", split="valid"),
    )  # fmt: skip
    heads = [rows(table)[0] for table in BeautifulSoup(
        page(read([tmp_path]), "x"), "html.parser").select("table")]  # fmt: skip
    assert heads == [["model", "fp32", p, "norm", "placement"] for p in ("fp16", "bf16")]


def test_every_link_has_its_end_and_every_id_is_one(seen):
    ids = [element["id"] for element in seen.select("[id]")]
    assert len(ids) == len(set(ids))
    assert {link["href"].removeprefix("#") for link in seen.select("a")} <= set(ids)


def test_every_number_leads_to_its_record_with_its_command_and_provenance(seen):
    link = next(a for a in seen.select("#models a") if a.text == "900.000")
    told = seen.find(id=link["href"].removeprefix("#")).text
    for fact in ("python -m evaluate run=", "precision=[fp16]", "f" * 64, "abc-dirty", "1 x cpu"):
        assert fact in told


def test_ranges_begin_with_the_record_that_lost_most(seen):
    first, *others = seen.select("#ranges .chart")
    assert first["aria-label"].endswith("fp16: 7 overflowed, 0 vanished of 36 rows")
    assert all(other.find_parent("details") for other in others)
    lost = [row for row in json.loads(first["data-spec"])["layer"][3]["data"]["values"]
            if row["lost"]]  # fmt: skip
    assert [(row["site"], row["rows"]) for row in lost] == [("2 mlp in", "12, 7 overflowed")]


def test_watched_sizes_are_drawn_and_nulls_left_out(seen):
    charts = {chart["aria-label"]: chart for chart in seen.select("#insides .chart")}
    spec = json.loads(charts["mean x², what each norm was given"]["data-spec"])
    assert {row["name"] for row in spec["data"]["values"]} == {"norm_final"}


def test_sections_are_those_that_have_something_to_say(seen, tmp_path):
    ids = [section["id"] for section in seen.select("section")]
    assert ids == ["failed", "losses", "rates", "models", "ranges", "insides", "provenance"]
    write_run(tmp_path, "alone")
    alone = BeautifulSoup(page(read([tmp_path]), "alone"), "html.parser")
    assert [section["id"] for section in alone.select("section")] == ["losses", "provenance"]


@pytest.mark.system
def test_the_same_input_is_the_same_page(folder, made):
    assert page(read([folder / "out", folder / "runs"]), f"title {HOSTILE}") == made


def test_the_command_writes_the_page_and_says_where(folder, tmp_path, capsys):
    main([str(folder / "runs"), "--out", str(tmp_path / "new" / "r.html"), "--title", "T"])
    assert "<h1>T</h1>" in (tmp_path / "new" / "r.html").read_text()
    assert re.fullmatch(r"written to .*r\.html \(\d+ KiB\)\n", capsys.readouterr().out)


def test_without_the_libraries_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "normlab.report.page", None)
    write_run(tmp_path, "a")
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "pip install 'normlab[report]'" in capsys.readouterr().err
