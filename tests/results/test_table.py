"""What a table says: rows, columns, cells, its head."""

import dataclasses
import io
import math

import pytest
from rich.console import Console

from normlab.results import latest, tables
from normlab.results.formats import markdown, terminal
from normlab.results.spread import spreads
from normlab.results.table import difference, number
from tests.support.records import record


def cells(table, precision):
    return [str(row[precision]) for row in table.rows.values()]


def test_models_are_rows_and_precisions_columns_as_they_come():
    (table,) = tables([record("b"), record("b", "fp16"), record("a"), record("a", "fp16")])
    assert [subject[0] for subject in table.rows] == ["b", "a"]
    assert table.precisions == ("fp32", "fp16")
    assert table.columns == ["model", "norm", "placement", "fp32", "fp16 (Δ)"]
    (picked,) = tables([record("b"), record("b", "fp16")], ["fp16"])
    assert picked.lines() == [["b", "rmsnorm", "pre", "5.116"]]


def test_a_cell_says_what_happened():
    made = [
        record("ok", "fp16", perplexity=19.105, delta=13.989, delta_stderr=0.41),
        record("over", "fp16", perplexity=9e5, delta=9e5, delta_stderr=3e3, overflowed_rows=1234),
        record("under", "fp16", perplexity=math.nan, delta=math.nan, delta_stderr=math.nan,
               overflowed_rows=1, zero_rows=12),
        record("inf", "fp16", perplexity=math.inf, delta=math.inf, delta_stderr=math.nan),
        record("dyt", "fp16", perplexity=None, status="n/a"),
        record("run", "fp16", perplexity=None, status="diverged"),
    ]  # fmt: skip
    (table,) = tables(made)
    assert cells(table, "fp16") == [
        "19.105 (+13.99 ± 0.41)",
        "9e+05 (+900000 ± 3000; overflow 1,234)",
        "nan (overflow 1; zero 12)",
        "inf",
        "n/a",
        "diverged",
    ]


def test_what_does_not_compare_has_tables_of_its_own():
    found = tables(
        [
            record(),
            record("b", tokens_scored=7),
            record("c", window=128),
            record("d", protocol="gptq"),
            record("e", dataset_title=None),
        ]
    )
    assert [next(iter(t.rows))[0] for t in found] == ["a", "b", "c", "d", "e"]
    assert found[-1].title == "Not evaluated."


def test_the_head_names_text_split_protocol_window_tokens_and_order():
    (table,) = tables([record()])
    for part in ("WikiText-2 (raw)", "test split", "window v1", "64 tokens", "1,234,567 tokens"):
        assert part in table.title
    assert "sums are pairwise" in table.title
    assert "first 20 windows" in tables([record(max_windows=20)])[0].title


def test_word_perplexity_where_the_protocol_reports_it():
    (table,) = tables(
        [
            record(
                "a", "fp16", reported="word_perplexity", word_perplexity=23.126, word_delta=0.5,
                word_delta_stderr=0.25, delta=9.0, delta_stderr=9.0,
            )
        ]
    )  # fmt: skip
    assert table.title.startswith("Word perplexity")
    assert cells(table, "fp16") == ["23.126 (+0.50 ± 0.25)"]


def trained(name, **config):
    config = {"norm": {"type": "rmsnorm"}, "optimizer": {"lr": 1e-3}, "seed": 0} | config
    return record(name, facts={"config": config | {"run": name}})


def test_what_tells_runs_apart_is_a_column_the_seed_last():
    one, other = {"lr": 1e-3, "warmup": 5}, {"lr": 1e-2, "warmup": 5}
    (table,) = tables(
        [
            trained("a", optimizer=one, model={"heads": None}),
            trained("b", optimizer=other, seed=1, model={"heads": 2}),
            record("c"),
        ]
    )
    assert table.columns[3:-1] == ["optimizer.lr", "model.heads", "seed"]
    assert [line[3:-1] for line in table.lines()] == [
        ["0.001", "null", "0"], ["0.01", "2", "1"], ["", "", ""],
    ]  # fmt: skip


def test_defaults_of_norm_types_tell_nothing_beside_their_names():
    plain, made = {"type": "rmsnorm", "bias": False}, {"type": "layernorm", "bias": True}
    (table,) = tables([trained("a", norm=plain), trained("b", norm=made)])
    assert table.settings == ()
    other = plain | {"bias": True}
    (table,) = tables([trained("a", norm=plain), trained("b", norm=other)])
    assert table.settings == ("norm.bias",)


def test_sites_that_were_added_are_named_beside_the_placement():
    def placed(name, **placement):
        config = {"type": "peri"} | placement
        facts = {"config": {"placement": config, "optimizer": {}}}
        return record(name, placement="peri", placement_config=config, facts=facts)

    added = {"norm_embed": True, "norm_qk": True}
    (table,) = tables([placed("a", norm_embed=False, norm_qk=False), placed("b", **added)])
    assert [line[2] for line in table.lines()] == ["peri", "peri + norm_embed + norm_qk"]
    assert table.settings == ()


def test_what_must_be_known_of_a_model_is_in_the_title_once():
    said = "step 0 of 200, unfinished"
    (table,) = tables([record("a", note=said), record("a (fold)", note=said), record("b")])
    assert table.title.endswith(f" a: {said}.")
    assert table.title.count(said) == 1


def test_why_a_model_has_no_number_is_said_once():
    why = "refused: ValueError: optimizer.warmup = 20"
    none = [record("r", p, status=why, perplexity=None, dataset_title=None) for p in ("fp32", "x")]
    (table,) = tables(none)
    assert table.lines() == [["r", "rmsnorm", "pre", why, ""]]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal([table]))
    assert console.export_text().count(why) == markdown([table]).count(why) == 1
    assert spreads([_trained(r, seed) for seed in (0, 1) for r in none], ["x"]) == []


def test_the_later_of_two_records_counts():
    (table,) = tables([record(perplexity=1.0), record(perplexity=2.0)])
    assert cells(table, "fp32") == ["2.000"]


def test_a_row_is_of_one_set_of_weights_the_last_that_was_evaluated():
    def run(precision, weights, perplexity, **more):
        facts = {"source": "runs/a"}
        return record("a", precision, perplexity=perplexity, weights_sha256=weights, facts=facts,
                      **more)  # fmt: skip

    early = [run("fp32", "100", 9.0, note="step 100"), run("fp16", "100", 9.5, delta=0.5)]
    failed = record("b", status="diverged", perplexity=None)
    (table,) = tables([*early, failed, run("fp32", "200", 5.0)])
    assert [line[3:] for line in table.lines()] == [["diverged"], ["5.000"]]
    assert "step 100" not in table.title
    assert tables([*early, failed])[0].lines()[0][-2:] == ["9.000", "9.500 (+0.5)"]


def _trained(r, seed):
    """The record as one of a training run of that seed."""
    config = {"seed": seed, "optimizer": {"lr": 1e-3}}
    facts = r.model.facts | {"config": config}
    return dataclasses.replace(
        r, model=dataclasses.replace(r.model, name=f"m{seed}", seed=seed, facts=facts)
    )


@pytest.mark.parametrize("source", ["a", "b"])
@pytest.mark.parametrize(
    "edited",
    [
        {"config": {"rope_theta": 1e6}}, {"norm_config": {"eps": 1e-3}},
        {"placement_config": {"norm_qk": True}}, {"tokenizer_hash": "2"}, {"weights_sha256": "2"},
    ],
    ids=lambda edited: next(iter(edited)),
)  # fmt: skip
def test_a_row_is_of_one_config_and_tokenizer_too(edited, source):
    """Edited between two evaluations, or in a copy."""
    same = {
        "weights_sha256": "1", "tokenizer_hash": "1", "facts": {"source": "a"},
        "config": {"rope_theta": 1e4}, "norm_config": {"eps": 1e-5}, "placement_config": {},
    }  # fmt: skip
    before = [record("m", p, **same) for p in ("fp32", "fp16")]
    after = record("m", "fp16", **(same | edited | {"facts": {"source": source}}))
    rows = [cells for table in tables([*before, after]) for cells in table.rows.values()]
    assert [list(r) for r in rows] == [["fp32", "fp16"]] * (source == "b") + [["fp16"]]
    runs = [_trained(r, seed) for seed in (0, 1) for r in (*before, after)]
    said = spreads(runs, ["fp16"])
    assert bool(said) == (source == "b")  # without fp32 there is no mean over seeds


def test_two_models_of_one_name_are_two_rows():
    def final(source, weights, precision="fp32"):
        return record("final", precision, weights_sha256=weights, facts={"source": source})

    one, two = final("a/final", "1"), final("b/final", "2")
    unread = record("final", "bf16", status="unfinished", perplexity=None)
    (table,) = tables([one, two, final("b/final", "2", "fp16"), unread])
    assert [(row[0], list(cells)) for row, cells in table.rows.items()] == [
        ("final", ["fp32", "bf16"]), ("final (2)", ["fp32", "fp16"]),
    ]  # fmt: skip
    (moved,) = tables([one, final("elsewhere/final", "1", "fp16")])
    assert [list(cells) for cells in moved.rows.values()] == [["fp32", "fp16"]]
    assert latest(latest([one, two])) == latest([one, two])


@pytest.mark.parametrize(
    ("delta", "stderr", "text"),
    [
        (13.989, 0.4137, "+13.99 ± 0.41"),
        (-0.000123, 0.0000456, "-0.000123 ± 0.000046"),
        (5e4, 321.0, "+50000 ± 321"),
        (0.1, 0.0, "+0.1 ± 0"),
        (0.1, math.nan, "+0.1"),
        (0.1, None, "+0.1"),
    ],
)
def test_differences_have_as_many_decimals_as_their_error_has(delta, stderr, text):
    assert difference(delta, stderr) == text


def test_numbers():
    assert [number(x) for x in (5.11649, 9999.0, 12345678.0, math.inf, math.nan)] == [
        "5.116",
        "9999.000",
        "1.235e+07",
        "inf",
        "nan",
    ]
