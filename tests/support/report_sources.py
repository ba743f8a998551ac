"""Run directories and records as training and evaluation write them, made in no time."""

import json

from normlab.results import RecordFile
from normlab.runs.run import Run
from tests.support.records import grouped

HOSTILE = '<script>alert("x")</script> & <b>'
"""What must never reach a page as it is."""

PROVENANCE = {"normlab": "0.1", "code": "abc-dirty", "device": "1 x cpu", "packages": {"jax": "1"}}


def write_run(folder, name, norm="rmsnorm", lr=1e-3, seed=0, state="finished", loss=3.0, **config):
    """A run of 40 steps that ends at `loss`, or diverges after 20."""
    run, steps = Run(folder / name), 20 if state == "diverged" else 40
    config = {
        "norm": {"type": norm}, "placement": {"type": "pre"}, "model": {"width": 32},
        "optimizer": {"lr": lr}, "seed": seed, "runs": str(folder), **config,
    }  # fmt: skip
    rows = [{"step": 0, "seconds": 0.0, "valid_loss": 5.0}]
    for step in range(10, steps + 1, 10):
        value = 5.0 + (loss - 5.0) * step / 40
        rows.append({"step": step, "seconds": 1.0, "loss": value + 0.1})
        rows.append({"step": step, "seconds": 1.0, "valid_loss": value})
    if state == "diverged":
        rows.append({"step": steps + 3, "diverged": True})
    best = min(r["valid_loss"] for r in rows if "valid_loss" in r)
    run.write("config.yaml", config)
    run.write("overrides.yaml", [f"norm={norm}", f"note={HOSTILE}"])
    corpus = {"name": "embedded", "title": "A text"}
    sessions = [{"from_step": 0, **PROVENANCE}]
    run.write("provenance.json", {"text": "t" * 64, "corpus": corpus, "sessions": sessions})
    run.write("record.json", {
        "state": state, "parameters": 1000, "steps": rows[-1]["step"], "best_step": 40,
        "best_valid_loss": best, "best_valid_perplexity": 2.718281828459045**best, "seconds": 2.0,
    })  # fmt: skip
    run["metrics.jsonl"].write_text("".join(to_line(row) for row in rows))
    return run


def write_watch(run):
    """What `diagnostics_every` would have seen of one block."""
    sizes = {"mean_square": 0.5, "max_abs": 3.0, "max_square": 9.0}
    other = sizes | {"mean_square": None, "max_abs": 4.0}
    sites = {"norm_final": sizes, "blocks.0.mlp.norm_in": other}
    lines = [{"step": s, "stream": [sizes, sizes], "sites": sites} for s in (0, 20, 40)]
    run["diagnostics.jsonl"].write_text("".join(to_line(line) for line in lines))


def to_line(row):
    """One line of JSON."""
    return json.dumps(row) + "\n"


def site(low=-4.0, bins=12, overflowed=0, **more):
    """What a norm saw: sums from 2^low on, three octaves of them."""
    packed = {"first": low, "counts": [1] * bins}
    return {
        "rows": bins, "overflowed": overflowed, "zero": 0, "max_abs": 2.5, "max_norm": 6.0,
        "median_norm": 2.0, "squares": packed, "sums": packed, **more,
    }  # fmt: skip


def record(model, precision="fp32", perplexity=20.0, status="ok", **more):
    """One record on one text."""
    overflowed = more.pop("overflowed", 0)
    sites = {"norm_final": site(), "blocks.10.mlp.norm_in": site(),
             "blocks.2.mlp.norm_in": site(overflowed=overflowed)}  # fmt: skip
    told = {} if status != "ok" else {
        "perplexity": perplexity, "sum_nll": 100.0, "sites": sites, "rows": 36, "zero_rows": 0,
        "overflowed_rows": overflowed, "delta": perplexity - 20.0, "delta_stderr": 0.01,
    }  # fmt: skip
    fields = {
        "norm": "rmsnorm", "placement": "pre", "protocol": "window", "protocol_version": 1,
        "window": 32, "dataset": "embedded", "dataset_title": "A text", "split": "test",
        "sha256": "f" * 64, "tokens_scored": 33, "windows": 2, "default_order": "pairwise",
        "weights_sha256": "e" * 64, "environment": PROVENANCE, "seed": 0,
        "facts": {"source": f"runs/{model}"},
    }  # fmt: skip
    told |= {"key": f"{model}-{precision}"}
    return grouped(model=model, precision=precision, status=status, **(fields | told | more))


def run_record(run, precision="fp32", perplexity=20.0, **more):
    """What the evaluation of a run records."""
    config = run.read("config.yaml")
    facts = {
        "source": str(run.directory), "config": config, "training": run.record,
        "training_provenance": run.read("provenance.json"),
    }  # fmt: skip
    kind = {"norm": config["norm"]["type"], "seed": config["seed"], "facts": facts}
    return record(run.directory.name, precision, perplexity, **(kind | more))


def write_records(folder, *records):
    """records.jsonl in a directory."""
    for one in records:
        RecordFile(folder / "records.jsonl").add(one)
