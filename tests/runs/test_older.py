"""Runs saved by 8e88a28, before names changed: tests/support/runs_8e88a28.tar.gz.

Its archive holds two tiny runs without their optimizers (`post` has a norm after the sum, `sub-ln`
one inside a sublayer, both of which had other names) and the NLL that 8e88a28 gave of 32 tokens.
"""

import json
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from normlab.loss import token_nll
from normlab.model import Context
from normlab.results import renamed
from normlab.results.record import Record
from normlab.runs.run import Run, load
from normlab.training.trainer import train
from tests.support.runs import tiny_config

ARCHIVE = Path(__file__).parent.parent / "support" / "runs_8e88a28.tar.gz"
RUNS = ("layernorm-post", "rmsnorm-sub-ln")
TOKENS = np.arange(33)[None] * 7 % 300


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.system
@pytest.mark.parametrize("name", RUNS)
def test_its_model_gives_what_it_gave(older, name):
    model, nll = load(older / name).model, json.loads((older / "nll.json").read_text())
    for precision in ("fp32", "fp16:sequential"):
        logits = model(jnp.asarray(TOKENS[:, :-1]), Context(precision=precision))
        found = token_nll(logits, jnp.asarray(TOKENS[:, 1:]))[0]
        # Bit for bit on the processor that wrote it; another one's products round otherwise.
        np.testing.assert_allclose(found, nll[f"{name} {precision}"], rtol=1e-5)


def test_its_config_has_todays_fields_and_it_is_not_resumed(older):
    run = Run(older / RUNS[0])
    assert run.is_older
    config = run.read("config.yaml")
    assert config["norm"]["use_weight"] is True
    assert {"scale", "watch_every"}.isdisjoint({*config, *config["norm"]})
    run.write("record.json", run.record | {"state": "running"})
    with pytest.raises(ValueError, match=r"earlier version: it can be evaluated, but not resumed"):
        train(tiny_config(older, run=str(run.directory)))


def test_names_of_sites_parameters_and_columns_are_todays():
    assert renamed.name("blocks.0.mlp.norm_skip.gain") == "blocks.0.mlp.post_norm.weight"
    assert renamed.older_name("blocks.0.mlp.branch.sub_norm.weight").endswith("norm_inner.gain")
    assert renamed.older_name("blocks.0.mlp.branch_gain") == "blocks.0.mlp.branch_gain"
    line = {
        "key": "k", "model": "m", "norm": "rmsnorm", "placement": "post", "harmed_rows": 2,
        "imprecise_rows": 3, "precision": "fp16:lanes(8)+slanc", "order": "rounded",
        "sites": {"blocks.0.mlp.norm_skip": {"harmed": 1, "imprecise": 2, "max_norm": 1.0}},
        "norm_config": {"type": "rmsnorm", "scale": True},
    }  # fmt: skip
    record = Record.from_json(json.dumps(line))
    assert (record.ranges.underflow_error_rows, record.ranges.precision_loss_rows) == (2, 3)
    assert (record.precision, record.provenance.order) == ("fp16:lanes8+slanc", "exact_then_round")
    assert record.model.norm_config == {"type": "rmsnorm", "use_weight": True}
    seen = record.ranges.sites["blocks.0.mlp.post_norm"]
    assert seen == {"underflow_errors": 1, "precision_loss": 2, "max_norm": 1.0}
