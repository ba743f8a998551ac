"""Directories that we write, in `transformers` itself: every family, as it is and rewritten."""

import json
import tracemalloc
from contextlib import suppress

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open

from normlab import pretrained
from normlab.model import Context
from normlab.pretrained.export.fit import NoFamily, fitted
from normlab.pretrained.export.huggingface import write_config, write_weights
from normlab.pretrained.export.tensors import tensors
from normlab.pretrained.huggingface import Safetensors
from normlab.transforms import DoesNotApply, apply
from tests.conftest import forward, tiny_model
from tests.support.export_models import MADE_HERE
from tests.support.family_golden import TOKENS, golden, write
from tests.support.reference_forward import log_softmax

pytestmark = pytest.mark.system

GOLDEN = golden()
CHAINS = ("none", "rescale:0.25", "rescale:0.25+fold")


def exported(folder, fit, dtype="float32", shard_bytes=2e9):
    folder.mkdir()
    write_weights(folder, fit, dtype, shard_bytes)
    write_config(folder, fit, dtype, {"bos_token_id": None, "pad_token_id": None})
    return folder


def peers(folder, tokens):
    """Log-probabilities [b, l, v] of the directory by `transformers`, in float64."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    options = {"attn_implementation": "eager", "dtype": torch.float64}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor(tokens)).logits, -1).numpy()


def fits(model, source):
    """The model after each chain that applies, in its family; and with a config made of nothing."""
    with suppress(NoFamily):
        yield "made here", fitted(model, source.family)
    for chain in CHAINS:
        with suppress(DoesNotApply, NoFamily):  # GPT-NeoX's head can't take a folded bias
            yield chain, fitted(apply(model, chain), source.family, source.made_with)


ONLY_AS_IT_WAS = ("llama-3", "olmo3-yarn")
"""Rotary frequencies that our words don't say: another context than Llama 3.1's, and YaRN's."""


@pytest.mark.extended
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", GOLDEN)
def test_transformers_load_it_and_compute_the_same(case, tmp_path):
    """In float64, log-probabilities within 1e-4 of ours, whatever the chain."""
    kept = GOLDEN[case]
    source = pretrained.describe(f"hf:{write(tmp_path / 'm', kept['config'], kept['shapes'])}")
    done = dict(fits(source.load().model, source))
    assert "none" in done
    assert "made here" in done or case in ONLY_AS_IT_WAS
    for chain, fit in done.items():
        found = peers(exported(tmp_path / chain, fit), TOKENS)
        ours = log_softmax(forward(fit.model, TOKENS))
        print(f"{case}, {chain}: largest |Δ log p| {np.abs(found - ours).max():.1e}, {fit.family}")
        np.testing.assert_allclose(found, ours, rtol=0, atol=1e-4)


@pytest.mark.extended
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", MADE_HERE)
def test_transformers_load_what_was_trained_here(family, tmp_path, tokens):
    model = tiny_model(**MADE_HERE[family])
    fit = fitted(model)
    found, ours = peers(exported(tmp_path / "m", fit), tokens), log_softmax(forward(model, tokens))
    print(f"{family}: largest |Δ log p| {np.abs(found - ours).max():.1e}; {fit.notes}")
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-4)


def read(folder):
    """Every tensor of a directory, and the files that hold them."""
    found = Safetensors(folder)
    return {name: found.read(name) for name in found.shapes}, [f.name for f in found.files]


def test_weights_come_in_files_of_a_size_with_their_index(tmp_path):
    """Each is at most so large but for one of a single tensor; together they are the model."""
    fit = fitted(tiny_model())
    whole, names = read(exported(tmp_path / "one", fit))
    assert names == ["model.safetensors"]
    size = 20_000
    parts, names = read(exported(tmp_path / "several", fit, shard_bytes=size))
    assert names == [f"model-{i + 1:05}-of-{len(names):05}.safetensors" for i in range(len(names))]
    assert len(names) > 2
    for name in names:
        path = tmp_path / "several" / name
        with safe_open(path, framework="numpy") as file:
            assert path.stat().st_size <= size + 8 + 1000 or len(file.keys()) == 1
    assert parts.keys() == whole.keys()
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)
    index = json.loads((tmp_path / "several" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_weights_are_rounded_to_the_nearest(dtype, tmp_path):
    fit = fitted(tiny_model())
    whole, _ = read(exported(tmp_path / "one", fit))
    half, _ = read(exported(tmp_path / "half", fit, dtype))
    to = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    for name, values in whole.items():
        np.testing.assert_array_equal(half[name], values.astype(to).astype(np.float32))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype


def test_a_weight_beyond_float16_is_named(tmp_path):
    model = tiny_model()
    model.norm_final.weight[...] = model.norm_final.weight[...] * np.float32(1e5)
    with pytest.raises(ValueError, match=r"dtype = float16: model.norm.weight holds [\d.e+]+, .*"):
        exported(tmp_path / "half", fitted(model), "float16")


def test_writing_holds_one_tensor_beside_the_model(tmp_path):
    fit = fitted(tiny_model(layers=4, width=192))
    sizes = [values.nbytes for values in read(exported(tmp_path / "m", fit))[0].values()]
    tracemalloc.start()
    exported(tmp_path / "again", fit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * max(sizes) < sum(sizes) / 8


@pytest.mark.extended
@pytest.mark.filterwarnings("default")
def test_a_real_model_keeps_its_log_probabilities_and_its_bits(tmp_path):
    """SmolLM2 on a stream an eighth as large: as it was loaded, its files powers of two away."""
    pytest.importorskip("transformers")
    try:
        source = pretrained.describe("smollm2-135m")
    except pretrained.CheckpointError as error:
        pytest.skip(str(error))
    model = source.load().model
    fit = fitted(apply(model, "rescale:0.125"), source.family)
    folder = exported(tmp_path / "m", fit)
    written = Safetensors(folder)
    for tensor in tensors(model, fit.names):
        smaller = tensor.name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight"))
        expected = tensor.values() / 8 if smaller else tensor.values()
        np.testing.assert_array_equal(written.read(tensor.name), expected)
    tokens = np.random.default_rng(0).integers(0, 49152, (1, 64))
    graphdef, params = nnx.split(model)
    exact = {"xla_cpu_experimental_ynn_fusion_type": ""} if jax.default_backend() == "cpu" else None
    run = jax.jit(lambda p, t: nnx.merge(graphdef, p)(t, Context()), compiler_options=exact)
    ours, theirs = log_softmax(run(params, tokens)), peers(folder, tokens)
    print(f"smollm2-135m, rescale:0.125: largest |Δ log p| {np.abs(ours - theirs).max():.1e}")
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)
