"""Golden vectors: every stage again, bit for bit, by a script that knows NumPy alone."""

import json
import subprocess
import sys

import numpy as np
import pytest

from normlab.evaluation import reproduce
from normlab.evaluation.golden import (
    GoldenConfig,
    described,
    files,
    rows_of,
    vectors,
    with_corners,
    write,
)
from normlab.norms import Site, norms
from normlab.numerics import Datapath, DoesNotFit, FloatFormat, Mean, Root, datapaths
from tests.support.numerics_reference import DTYPES, all_values

D = 64
PATHS = {
    "tree": Datapath(sum="fp16:tree_0_2_a_1_3_a_a", mean=Mean("shift"), root=Root("sqrt")),
    "wide": Datapath(
        sum="fp32:lanes8", tree="fp64", root=Root("magic", newton=1), output="int8.row"
    ),
    "blocks": Datapath(sum="e5m9:blocks16", root=Root("divide", "bf16"), output="fp8_e4m3.block16"),
    "line": Datapath(sum="bf16:cascade8", root=Root("table", "fp16", 32, interpolate=True)),
    "onepass": Datapath(sum="fp16:lanes8.onepass.input", root=Root("sqrt")),
    "mean": Datapath(sum="bf16:lanes4.mean", mirrored=True, mean=Mean("divide", "bf16")),
    "onepass-mean": Datapath(sum="fp32:sequential.onepass.mean", root=Root("sqrt")),
    "welford": Datapath(variance="welford4", root=Root("divide", "fp16"), bias="bf16"),
}


def made(path, name="rmsnorm", **told):
    """The vectors of a small norm with weights of its own."""
    kind = norms[name]
    norm = kind(D, Site("norm_in", "here"), kind.Config(**told))
    rng = np.random.default_rng(0)
    for p in (norm.weight, norm.bias):
        if p is not None:
            p[...] = rng.normal(1, 0.5, D).astype(np.float32)
    x = rng.normal(size=(20, D)) * 10.0 ** rng.uniform(-4, 3, (20, 1))
    path, _ = described(path)
    return vectors(path, norm, with_corners(np.float32(x), path)[0])


@pytest.mark.system
def test_every_preset_and_kind_of_stage_is_reproduced(tmp_path):
    """Of a layer norm with a bias, too, and of a weight that is stored as w."""
    for name, path in ({name: datapaths[name] for name in datapaths} | PATHS).items():
        norms_asked = {"centred": ("layernorm", {}), "no-bias": ("layernorm", {"bias": False})}
        if path.variance is None:
            norms_asked["rms"] = ("rmsnorm", {"one_plus": "gemma" in name})
        for kind, (norm, told) in norms_asked.items():
            (folder := tmp_path / f"{name}-{kind}").mkdir()
            files(folder, *made(path, norm, **told))
            assert reproduce.main(folder) == 0, f"{name}, {kind}"


@pytest.mark.system
def test_the_script_runs_where_there_is_numpy_alone_and_sees_one_bit(tmp_path):
    files(tmp_path, *made(datapaths["simd16-table64"]))
    alone = (
        "import runpy, sys; sys.argv = ['reproduce.py']; sys.modules['jax'] = None\n"
        f"runpy.run_path({str(tmp_path / 'reproduce.py')!r}, run_name='__main__')"
    )
    command = [sys.executable, "-I", "-c", alone]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"input: {31 * D} of {31 * D} equal\n")
    assert {line.split(":")[0] for line in done.stdout.splitlines()} >= {
        *("input", "square", "lanes", "tree", "sum", "mean", "eps", "root", "product", "output")
    }
    lines = (tmp_path / "root.hex").read_text().split()
    lines[3] = f"{int(lines[3], 16) ^ 1:04x}"
    (tmp_path / "root.hex").write_text("\n".join(lines))
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1
    assert "root: 30 of 31 equal" in again.stdout


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8_e4m3", "fp8_e5m2"])
def test_bit_patterns_are_those_of_the_format(name):
    """Of every value; of NaN one of its codes."""
    x = all_values(name)
    codes = np.arange(len(x))
    number = ~np.isnan(x)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        assert (reproduce.encoded(x, name)[number] == codes[number]).all()
    size = np.dtype(DTYPES[name]).itemsize
    nan = reproduce.encoded(np.float32([np.nan]), name).astype(f"u{size}")
    assert np.isnan(nan.view(DTYPES[name]).astype(np.float32)).all()


def test_rounding_of_the_script_is_ours():
    x = np.float32(
        np.random.default_rng(0).normal(size=4000) * 10.0 ** np.arange(-20, 20).repeat(100)
    )
    from normlab.numerics import round_to

    for name in ("fp16", "bf16", "e5m7.flush", "e4m3.saturate", "fp8_e4m3"):
        assert np.array_equal(reproduce.held(x, name), round_to(x, name), equal_nan=True), name
        assert FloatFormat.parse(name).mantissa == reproduce.bits_of(name)[1]


def test_a_directory_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """And never over another."""
    from normlab.evaluation import golden

    path, norm_x = datapaths["onnx-fp16"], made(datapaths["onnx-fp16"])[1]["x"]
    kind = norms["rmsnorm"]
    norm = kind(D, Site("norm_in", "here"), kind.Config())
    monkeypatch.setattr(golden, "rows_of", lambda config: (norm, norm_x[:4]))
    config = GoldenConfig(path.name, pretrained="here", rows=4, out=str(tmp_path / "a" / "b"))
    out, said = write(config)
    assert json.loads((out / "unit.json").read_text())["corners"]["zeros"] == 4
    assert "pinned to fp32:pairwise" in said
    assert reproduce.main(out) == 0
    with pytest.raises(ValueError, match=r"b is there already: expected a directory that is not"):
        write(config)
    monkeypatch.setattr(golden, "files", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(GoldenConfig(path.name, pretrained="here", out=str(tmp_path / "a" / "c")))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b"]


def test_what_the_script_cannot_say_is_refused():
    with pytest.raises(DoesNotFit, match="datapath 'dice': golden vectors are of"):
        described(Datapath(sum="fp16.stochastic1", name="dice"))
    with pytest.raises(ValueError, match=r"pretrained=torch:x: expected a model that JAX computes"):
        rows_of(GoldenConfig("iron-bf16", pretrained="torch:x", out="x"))
    with pytest.raises(ValueError, match="out: expected a directory for the vectors"):
        write(GoldenConfig("iron-bf16"))
