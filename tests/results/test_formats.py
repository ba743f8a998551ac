"""Each format of a table gives back what went in."""

import csv
import io
import re

from rich.console import Console

from normlab.results import tables
from normlab.results.formats import as_csv, escaped, latex, markdown, ruled, terminal
from tests.support.records import record

MADE = tables(
    [
        record("a|b", overflowed_rows=0),
        record("a|b", "fp16+slanc", delta=0.5, delta_stderr=0.1, overflowed_rows=12, zero_rows=3),
        record("dyt_x", norm="dyt"),
        record("dyt_x", "fp16+slanc", norm="dyt", perplexity=None, status="n/a"),
    ]
)
(TABLE,) = MADE
ROWS = [
    ["a|b", "rmsnorm", "pre", "5.116", "5.116 (+0.50 ± 0.10; overflow 12; zero 3)"],
    ["dyt_x", "dyt", "pre", "5.116", "n/a"],
]


def test_markdown():
    text = markdown(MADE)
    assert text.startswith(TABLE.title)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    parsed = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in lines]
    assert parsed[0] == TABLE.columns
    assert [[c.replace(r"\|", "|") for c in row] for row in parsed[2:]] == ROWS
    assert "overflow: rows (one token" in text


def test_csv():
    rows = list(csv.DictReader(io.StringIO(as_csv(MADE))))
    assert [r["model"] for r in rows] == ["a|b", "dyt_x"]
    assert float(rows[0]["fp16+slanc"]) == 5.116
    assert float(rows[0]["fp16+slanc delta"]) == 0.5
    assert float(rows[0]["fp16+slanc stderr"]) == 0.1
    assert int(rows[0]["fp16+slanc overflowed"]) == 12
    assert int(rows[0]["fp16+slanc zero"]) == 3
    assert rows[1]["fp16+slanc"] == ""
    assert rows[1]["fp16+slanc status"] == "n/a"
    assert int(rows[0]["tokens_scored"]) == 1234567
    assert as_csv([]).startswith("model,norm,placement")


def test_settings_and_notes_are_in_every_format():
    runs = [
        record(name, note=note, norm="rmsnorm", facts={"config": {"optimizer": {"lr": lr}}})
        for name, lr, note in (("a", 1e-3, None), ("b", 1e-2, "step 0 of 9, unfinished"))
    ]
    made = [*tables(runs), *tables([record("c", window=32)])]
    rows = list(csv.DictReader(io.StringIO(as_csv(made))))
    assert [r["optimizer.lr"] for r in rows] == ["0.001", "0.01", ""]
    assert [r["note"] for r in rows] == ["", "step 0 of 9, unfinished", ""]
    assert [r["window"] for r in rows] == ["64", "64", "32"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal(made))
    for text in (markdown(made), latex(made), console.export_text()):
        for part in ("optimizer.lr", "0.001", "0.01", "b: step 0 of 9, unfinished."):
            assert part in text
    assert r"\begin{tabular}{llllr}" in latex(made)


def test_latex():
    text = latex(MADE)
    assert text.count(r"\begin{tabular}{lllrr}") == text.count(r"\end{tabular}") == 1
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    parsed = [line.removesuffix(r" \\").split(" & ") for line in body]
    assert parsed[1:] == [[escaped(cell) for cell in row] for row in ROWS]
    assert r"dyt\_x" in text
    assert r"$\pm$" in text


def test_latex_escapes_what_it_would_read_itself():
    assert escaped(r"50% & $x_1^2$ {~} #\ ±") == (
        r"50\% \& \$x\_1\textasciicircum{}2\$ \{\textasciitilde{}\} \#\textbackslash{} $\pm$"
    )
    assert escaped("gemma3-270m (-14 to -2.6)") == "gemma3-270m ($-$14 to $-$2.6)"


def test_terminal():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(terminal([TABLE]))
    text = console.export_text()
    for part in ("WikiText-2 (raw)", "fp16+slanc", "+0.50 ± 0.10", "overflow 12", "zero 3", "n/a"):
        assert part in text


def test_a_narrow_terminal_loses_nothing():
    console = Console(width=60, record=True, file=io.StringIO())
    lines = [["model", "norm", "fp32"], ["a-long-name-of-a-[model]" * 2, "rmsnorm", "+1.0 ± 0.1"]]
    console.print(ruled("A title that goes on and on. " * 4, lines, 2))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 60
    assert "rmsnorm" in text
    kept = "".join(line.split("   ")[0].strip() for line in text.splitlines()[-6:])
    assert "a-long-name-of-a-[model]" * 2 in kept
