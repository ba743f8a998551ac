"""Records: JSON and back, the file, what a kill leaves behind."""

import dataclasses
import json
import math

import pytest

from normlab.results import Record, RecordFile

FULL = Record(
    key="k1",
    model="m",
    norm="rmsnorm",
    placement="pre",
    precision="fp16:lanes8+slanc",
    perplexity=math.inf,
    sum_nll=math.nan,
    delta=-math.inf,
    delta_stderr=0.25,
    token_delta_max=math.inf,
    token_delta_max_at=[1, 3],
    kl_mean=math.nan,
    tokens_scored=7,
    sites={"norm_final": {"rows": 3, "max_norm": math.inf, "scale": [[2.0], [0.5]]}},
    window_nll=[1.5, math.nan],
    window_tokens=[3, 4],
    facts={"config": {"seed": 3}, "text": "größer"},
)


PROMISED = {
    *("model", "norm", "placement", "precision", "protocol", "dataset", "split", "perplexity"),
    *("sum_nll", "tokens_scored", "windows", "overflowed_rows", "underflowed_rows"),
    *("delta", "delta_stderr"),
}
"""By the contract of the command line."""

DESIGNED = {
    *("bytes", "words", "word_perplexity", "bits_per_byte", "nonfinite_windows", "sites"),
    *("protocol_version", "dataset_revision", "text_sha256", "tokenizer_hash", "model_config"),
    *("norm_config", "placement_config", "scales_sha256", "seed", "provenance", "default_order"),
    *("token_delta_mean", "token_delta_max", "token_delta_max_at", "top1_agreement"),
    *("kl_mean", "kl_max", "precision_loss_rows", "underflow_error_rows"),
}


def test_the_fields_that_are_promised():
    assert set(json.loads(FULL.to_json())) >= PROMISED | DESIGNED


def test_json_is_standard_and_gives_back_the_record():
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    values = json.loads(FULL.to_json(), parse_constant=refuse)
    assert values["perplexity"] == "inf"
    assert float(values["sum_nll"]) != float(values["sum_nll"])
    again = Record.from_json(FULL.to_json())
    assert again.to_json() == FULL.to_json()
    assert again.perplexity == again.token_delta_max == math.inf
    assert again.token_delta_max_at == [1, 3]
    assert math.isnan(again.window_nll[1])
    assert again.sites == FULL.sites


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match="Did you mean 'perplexity'"):
        Record.from_json(json.dumps({"key": "k", "perplexty": 3}))


def test_a_file_keeps_records_in_order_and_drops_a_half_line(tmp_path):
    file = RecordFile(tmp_path / "deep" / "records.jsonl")
    assert file.read() == []
    file.add(FULL)
    half = dataclasses.replace(FULL, key="k2").to_json()[:40]
    with file.path.open("a") as f:
        f.write(half)
    assert [r.key for r in file.read()] == ["k1"]
    file.add(dataclasses.replace(FULL, key="k3"))
    assert [r.key for r in file.read()] == ["k1", "k3"]
    assert file.path.read_text().endswith("}\n")
