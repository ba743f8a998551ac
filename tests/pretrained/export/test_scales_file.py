"""scales.json: what is written, what is refused, and what is read back."""

import json

import numpy as np
import pytest

from normlab.norms import all_norms
from normlab.numerics import Datapath, Mean, Root
from normlab.numerics.eps import EpsForm
from normlab.pretrained.export.scales_file import (
    HEAD_AXIS,
    ScalesFile,
    scales_file,
    stages,
    weights_hash,
)
from normlab.pretrained.families import configs, families
from normlab.results.column import Column
from normlab.scaling import scales
from tests.conftest import tiny_model
from tests.support.family_golden import golden

PERI = {"placement": "peri", "placement_fields": {"norm_qk": True}}
COLUMN = Column.parse("fp16:pairwise.input+slanc")


@pytest.fixture(scope="module")
def model():
    return tiny_model(**PERI)


@pytest.fixture(scope="module")
def made(model):
    kept = ["norm_final"]
    return scales_file(model, "gemma3_text", families["gemma3_text"].folder, COLUMN, "a" * 64, kept)


def test_each_norm_has_its_scale_by_its_modules_name(model, made):
    found = scales(model, "slanc")
    sites = [norm.site.name for norm in all_norms(model)]
    assert [m.site for m in made.modules.values()] == sites
    for scale in made.modules.values():
        s = np.asarray(found[scale.site])
        inverse = np.float32(1) / s
        beside = EpsForm.UNDER.beside_mean(1e-5, inverse)
        assert scale.scale == tuple(s.ravel())
        assert scale.inverse == tuple(inverse.ravel())
        assert scale.eps_over_s2 == tuple(np.ravel(beside))
        assert scale.keep_fp32 == (scale.site == "norm_final")
        assert (scale.head_axis, len(scale.scale)) == ((1, 2) if s.ndim else (None, 1))
        assert scale.one_plus
        assert scale.kind == "rmsnorm"
    names = {name: m.site for name, m in made.modules.items()}
    assert names["model.layers.1.self_attn.q_norm"] == "blocks.1.attention.query.norm_qk"
    assert names["model.layers.0.pre_feedforward_layernorm"] == "blocks.0.mlp.norm_in"
    assert names["model.norm"] == "norm_final"


def test_it_comes_back_as_it_was(made, tmp_path):
    made.write(tmp_path)
    assert ScalesFile.read(tmp_path / "scales.json") == made
    assert (tmp_path / "apply_scales.py").read_text().startswith('"""Scaled norms in real FP16')
    one = json.loads((tmp_path / "scales.json").read_text())["modules"]["model.norm"]
    assert isinstance(one["scale"], float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.update(version=2), "is of version 2: expected 1"),
        (lambda told: told.pop("rule"), "has no rule"),
        (lambda told: _norm(told).update(scal=1.0), "unknown key .*'scal'. Did you mean 'scale'"),
        (lambda told: _norm(told).update(kind="dyt"), r"unknown modules.model.norm.kind 'dyt'"),
        (lambda told: _norm(told).update(inverse=-1.0), "norm.inverse = -1.0: expected a finite"),
        (lambda told: _norm(told).update(scale=[1.0, 2.0]), "inverse = .*: expected a finite numb"),
        (lambda told: _norm(told).update(site=3), "norm.site = 3: expected text"),
    ],
)
def test_a_file_that_was_changed_is_refused(change, message, made, tmp_path):
    made.write(tmp_path)
    path = tmp_path / "scales.json"
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))
    with pytest.raises((ValueError, TypeError), match=message):
        ScalesFile.read(path)


def _norm(told):
    return told["modules"]["model.norm"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": "fp16+row_max"}, "'row_max' gives each row a scale of its own, which no file"),
        ({"column": "fp16"}, "fp16: expected a scale rule, such as fp16"),
        ({"keep": ["norm_finale"]}, "unknown site 'norm_finale'. Did you mean 'norm_final'"),
        ({"model": {"norm": "dyt"}}, "norm 'dyt' at .*: expected rmsnorm or layernorm"),
        (
            {"model": {"norm_fields": {"eps_form": "added"}}},
            "norm 'rmsnorm' at blocks.0.*ε under the root",
        ),
        ({"family": "llama", "model": PERI}, "each head has a scale; .*, not of llama"),
    ],
)
def test_what_no_file_can_say_is_refused(changes, message, model):
    column = Column.parse(changes.get("column", "fp16+sqrt_d"))
    if "family" in changes:
        column = COLUMN
    given = tiny_model(**changes["model"]) if "model" in changes else model
    family = changes.get("family", "gemma3_text")
    with pytest.raises(ValueError, match=message):
        scales_file(given, family, families[family].folder, column, "", changes.get("keep", ()))


def test_two_norms_in_one_module_need_one_scale():
    """Phi's, where both branches read the same row."""
    given = tiny_model("layernorm", "parallel")
    made = scales_file(given, "phi", families["phi"].folder, Column.parse("fp16+slanc"), "")
    assert [m.site for m in made.modules.values()] == [
        "blocks.0.attention.norm_in", "blocks.1.attention.norm_in", "norm_final"
    ]  # fmt: skip
    assert {m.kind for m in made.modules.values()} == {"layernorm"}
    with pytest.raises(ValueError, match=r"layernorm is .*attention.norm_in and .*mlp.norm_in"):
        scales_file(tiny_model(), "phi", families["phi"].folder, Column.parse("fp16+slanc"), "")


def test_only_what_is_narrow_is_spelled():
    assert stages("fp16") == {"sum": {"format": "fp16", "order": "pairwise"}}
    assert stages("fp32") == {"sum": {"format": "fp32"}}
    expected = {"format": "fp16", "order": "lanes8", "lanes": 8, "input": True}
    assert stages("fp16:lanes8.input") == {"sum": expected}
    path = Datapath(sum="fp16:sequential", mean=Mean("divide"), root=Root("sqrt", "fp16"))
    assert stages(path) == {
        "sum": {"format": "fp16", "order": "sequential", "lanes": 1},
        "mean": {"kind": "divide"},
        "root": {"kind": "sqrt", "format": "fp16"},
    }


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ane-fp16", "ane-fp16: its mirrored is not computed"),
        ("simd16-table64", "root.kind = 'table' is not computed"),
        ("torch-layernorm-fp16", "its variance is not computed"),
        ("hf-llama-fp16", "the order cascade8 is not computed"),
        ("llama-cpp", "'fp64' is not computed"),
        ("fp16.mean", "its option mean is not computed"),
        ("fp16.flush", "'fp16.flush' is not computed .* fp16, bf16, fp32"),
        (Datapath(output="int8.row"), "output = 'int8.row' is not computed"),
        (Datapath(sum="fp16:lanes8", tree="fp32"), "its tree is not computed"),
    ],
)
def test_a_stage_that_is_not_computed_is_refused_by_its_name(path, message):
    with pytest.raises(ValueError, match=message):
        stages(path)


def test_the_hash_is_of_halves_whatever_their_order():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 4)), rng.standard_normal(4)
    found = weights_hash([a, b])
    assert found == weights_hash([b.astype(np.float16), np.float32(a.astype(np.float16))])
    assert found != weights_hash([a.T, b])
    assert found != weights_hash([a, b + 0.01])


def test_every_family_with_norms_on_heads_says_where_they_lie():
    """In the rows that transformers hands them: test_apply_scales.py sees whether that is so."""
    kept = [case["config"] for case in golden().values()]
    placed = {c["model_type"]: configs(c, c["model_type"])[1].placement for c in kept}
    by_head = {name for name, p in placed.items() if p.norm_qk and not p.norm_qk_full}
    assert by_head == HEAD_AXIS.keys()
