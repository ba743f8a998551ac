"""apply_scales.py against our norms, bit for bit, and in models of transformers."""

import copy
import dataclasses
import json
import math
import re
import sys
from functools import cache, partial

import jax
import numpy as np
import pytest

from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.export import ExportConfig, write
from normlab.evaluation.targets import targets
from normlab.evaluation.texts import Texts
from normlab.norms import NormContext, Site, all_norms, norms
from normlab.numerics import Accumulator, Datapath, Precision, Root, arithmetic
from normlab.pretrained import CheckpointError, describe
from normlab.pretrained.export.scales_file import ScalesFile, scales_file, stages, weights_hash
from normlab.results.column import Column
from tests.support.family_golden import PLAIN, SMALL
from tests.support.small_checkpoints import write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("default"),  # other packages' warnings are theirs
]

from normlab.pretrained.export import apply_scales  # noqa: E402 (needs torch)

EPS = 1e-5
PATHS = (
    "fp16:pairwise", "fp16:pairwise.input", "fp16:sequential", "fp16:lanes8.input", "fp16:lanes3",
    "fp32:pairwise", "tensorrt-fp16",
)  # fmt: skip
UNITS = {
    "narrow": Datapath(
        sum="fp16:lanes4",
        input="fp16",
        square="bf16",
        mean=arithmetic("hf-llama-fp16").mean,
        eps="fp16",
        root=Root("divide", "bf16"),
        product="bf16",
        stored="bf16",
        one_plus="bf16",
        weight="fp16",
        cast_first=True,
        bias="bf16",
        output="fp16",
    )
}


def pinned(name):
    """A datapath whose 1/√ is two roundings: XLA's own rsqrt on a CPU is within 1 of its bits."""
    given = UNITS[name] if name in UNITS else arithmetic(name)
    path = Datapath(sum=str(given)) if isinstance(given, Precision) else given
    plain = path.root.kind == "rsqrt"
    return dataclasses.replace(path, root=Root("sqrt", path.root.format)) if plain else path


def rows(d):
    """Rows of 21 octaves of sizes in half, some of whose sums overflow without a scale."""
    rng = np.random.default_rng(d)
    x = rng.standard_normal((300, d)) * 2.0 ** rng.uniform(-8, 13, (300, 1))
    return x.astype(np.float16)


def ours(norm, x, path, scale):
    """Our norm's rows in float32."""
    return np.asarray(jitted(norm, path)(np.float32(x), np.float32(scale)))


@cache
def jitted(norm, path):
    return jax.jit(lambda x, scale: norm(x, NormContext(Accumulator(path, scale))))


@cache
def pair(kind, d):
    """A norm of ours, and the module of transformers (or PyTorch) that it stands for, in half."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    rng = np.random.default_rng(d)
    one_plus = kind == "gemma"
    kinds = {"layernorm": torch.nn.LayerNorm, "gemma": Gemma3RMSNorm, "rmsnorm": LlamaRMSNorm}
    module, type = kinds[kind](d, EPS), "layernorm" if kind == "layernorm" else "rmsnorm"
    norm = norms[type](d, Site("norm_in", "a"), norms[type].Config(eps=EPS, one_plus=one_plus))
    for name, parameter in module.named_parameters():
        values = rng.standard_normal(d).astype(np.float16)
        getattr(norm, name)[...] = values.astype(np.float32)
        parameter.data.copy_(torch.tensor(values))
    return norm, module.half()


def told(kind, scale, keep=False):
    """As scales.json has it."""
    over = np.float32(1) / np.float32(scale)
    type = "layernorm" if kind == "layernorm" else "rmsnorm"
    numbers = {"eps": EPS, "inverse": float(over), "eps_over_s2": float(np.float32(EPS) * over**2)}
    return numbers | {
        "kind": type, "one_plus": kind == "gemma", "keep_fp32": keep, "head_axis": None
    }  # fmt: skip


def applied(module, said, path, x):
    with torch.no_grad():
        return apply_scales.scaled_norm(module, said, stages(path), torch.tensor(x)).numpy()


@pytest.mark.parametrize("d", [5, 64, 576])
@pytest.mark.parametrize("kind", ["rmsnorm", "gemma", "layernorm"])
@pytest.mark.parametrize("name", [*PATHS, *UNITS])
def test_every_bit_is_that_of_our_norm(name, kind, d):
    path, x = pinned(name), rows(d)
    norm, module = pair(kind, d)
    for scale in (1.0, 16.0, 13.7):
        expected, said = ours(norm, x, path, scale), told(kind, scale)
        narrow = applied(module, said, path, x)
        assert narrow.dtype == np.float16
        np.testing.assert_array_equal(applied(module, said, path, np.float32(x)), expected)
        np.testing.assert_array_equal(narrow, expected.astype(np.float16))
        if scale == 1.0 and d > 5 and "fp16" in path.sum:
            lost = np.all(expected == 0, -1) | np.any(~np.isfinite(expected), -1)
            assert 0 < lost.sum() < len(x), "some rows overflow without a scale"


@pytest.mark.parametrize("kind", ["rmsnorm", "gemma", "layernorm"])
def test_what_is_kept_in_float32_is_the_modules_own(kind):
    """Whatever the scale; the module in float32, of which PyTorch alone knows the sum's order."""
    norm, module = pair(kind, 64)
    x, said = rows(64), told(kind, 16.0, keep=True)
    found = applied(module, said, "fp16:pairwise", np.float32(x))
    with torch.no_grad():
        expected = copy.deepcopy(module).float()(torch.tensor(np.float32(x))).numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(found, ours(norm, x, "fp32", 1.0), rtol=2e-6, atol=2e-6)


def test_only_the_root_is_another_where_none_is_named():
    """Two roundings here, XLA's own kernel there."""
    norm, module = pair("rmsnorm", 576)
    x = np.float32(rows(576))
    found = applied(module, told("rmsnorm", 16.0), "fp16:pairwise", x)
    np.testing.assert_array_max_ulp(found, ours(norm, x, "fp16:pairwise", 16.0), maxulp=4)


MODELS = {
    "llama": ("Llama", {"head_dim": 8}),
    "gemma3_text": ("Gemma3", {"head_dim": 8, "num_hidden_layers": 3}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "gpt_neox": ("GPTNeoX", {}),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """A model of transformers in half, ours of the same weights, and the scales of the latter."""
    folder = tmp_path_factory.mktemp("m")
    name, more = MODELS[request.param]
    settings = {**(PLAIN if name == "GPTNeoX" else SMALL), **more}
    config = getattr(transformers, f"{name.replace('Gemma3', 'Gemma3Text')}Config")(**settings)
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=rng))
    theirs.half().save_pretrained(folder)
    write_tokenizer(folder)
    checkpoint = describe(f"hf:{folder}")
    kept = "blocks.0.mlp.norm_in"
    weights = weights_hash(p.detach().numpy() for p in theirs.parameters())
    loaded, column = checkpoint.load().model, Column.parse("fp16:pairwise.input+random_tokens")
    made = scales_file(loaded, checkpoint.family, checkpoint.names, column, weights, [kept])
    made.write(folder)
    return theirs, loaded, folder


TOKENS = np.random.default_rng(0).integers(0, 300, (2, 6))


def test_a_model_in_half_computes_every_norm_as_ours_does(model):
    theirs, loaded, folder = model
    norm_of = {norm.site.name: norm for norm in all_norms(loaded)}
    said, seen = ScalesFile.read(folder / "scales.json"), {}
    theirs, before = copy.deepcopy(theirs), run(theirs)
    apply_scales.apply(theirs, folder / "scales.json")
    names = [n for n, _ in theirs.named_modules() if "norm" in n]

    def hold(_, x, y, name):
        seen[name] = x[0].numpy(), y.numpy()

    for name in names:
        theirs.get_submodule(name).register_forward_hook(partial(hold, name=name))
    after = run(theirs)
    assert len(seen) == len(said.modules)
    path, by_head = pinned("fp16:pairwise.input"), 0
    for name, scale in said.modules.items():
        x, y = next(pair for n, pair in seen.items() if f".{n}".endswith(f".{name}"))
        assert x.dtype == y.dtype == np.float16
        s = np.float32(scale.scale)
        if scale.head_axis is not None:
            by_head += len(set(scale.scale)) > 1
            s = np.moveaxis(s.reshape(-1, 1, 1, 1), 0, scale.head_axis)
        told = "fp32" if scale.keep_fp32 else path
        expected = ours(norm_of[scale.site], x, told, s).astype(np.float16)
        if scale.keep_fp32:
            np.testing.assert_array_max_ulp(y, expected, maxulp=1)
        else:
            np.testing.assert_array_equal(y, expected)
    assert by_head == sum("q_norm" in n or "k_norm" in n for n in said.modules)
    assert np.all(np.isfinite(after))
    np.testing.assert_allclose(after, before, rtol=0, atol=0.02 * np.abs(before).max())
    assert not np.array_equal(after, before)


def run(model):
    with torch.no_grad():
        return np.float32(model(torch.tensor(TOKENS)).logits.numpy())


def test_it_applies_to_these_weights_only(model):
    theirs, _, folder = model
    path = folder / "scales.json"
    apply_scales.apply(copy.deepcopy(theirs).float(), path)
    holder = torch.nn.ModuleDict({"inner": copy.deepcopy(theirs)})
    apply_scales.apply(holder, path)
    other = copy.deepcopy(theirs)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    with pytest.raises(ValueError, match="is of weights .*…, the model has .*…: expected the expo"):
        apply_scales.apply(other, path)
    apply_scales.apply(other, path, check=False)
    with pytest.raises(ValueError, match="no module .*norm.*; the nearest is "):
        apply_scales.apply(torch.nn.Sequential(torch.nn.Linear(3, 3)), path)


def test_a_file_of_another_version_or_stage_is_refused(model):
    theirs, _, folder = model
    told, path = json.loads((folder / "scales.json").read_text()), folder / "other.json"
    path.write_text(json.dumps(told | {"version": 2}))
    with pytest.raises(ValueError, match="is of version 2: expected 1"):
        apply_scales.apply(theirs, path)
    path.write_text(json.dumps(told | {"stages": told["stages"] | {"tree": "fp32"}}))
    with pytest.raises(ValueError, match="tree is no stage that is computed here"):
        apply_scales.apply(theirs, path)


def test_the_copy_beside_the_file_needs_pytorch_alone(model):
    _, _, folder = model
    code = (folder / "apply_scales.py").read_text()
    allowed = {*sys.stdlib_module_names, "torch"}
    found = re.findall(r"^\s*(?:from|import) (\w+)", code, re.MULTILINE)
    assert "torch" in found
    assert set(found) <= allowed


def perplexity(model, windows):
    inputs, targets = (
        torch.tensor(np.asarray(x)).long() for x in (windows.inputs, windows.targets)
    )
    with torch.no_grad():
        log_probs = torch.log_softmax(model(inputs).logits.float(), -1)
    return math.exp(-log_probs.gather(-1, targets[..., None]).mean().item())


def test_a_real_model_in_half_needs_its_scales(tmp_path):
    """The perplexities of docs/howto/export.md, on 2 windows of 128 tokens of WikiText-2."""
    asked = ExportConfig(
        pretrained="smollm2-135m",
        transform="fold",
        rule="random_tokens.pow2",
        window=128,
        max_windows=2,
        out=str(tmp_path / "m"),
    )
    try:
        out, card = write(asked, "")
    except CheckpointError as error:
        pytest.skip(str(error))
    config = EvaluateConfig(pretrained=f"hf:{out}", window=128, max_windows=2)
    (target,) = targets(config)
    windows = Texts().windows(target, config, target.tokenizer())
    load = partial(transformers.AutoModelForCausalLM.from_pretrained, out)
    found = {"float32": perplexity(load(dtype=torch.float32), windows)}
    model = load(dtype=torch.float16)
    found["float16"] = perplexity(model, windows)
    apply_scales.apply(model, out / "scales.json")
    found["scaled"] = perplexity(model, windows)
    said = json.loads((out / "scales.json").read_text())
    for scale in said["modules"].values():
        scale |= {"inverse": 1.0, "eps_over_s2": scale["eps"]}
    (out / "without.json").write_text(json.dumps(said))
    apply_scales.apply(model, out / "without.json")
    found["s = 1"] = perplexity(model, windows)
    print(found)
    assert found["float32"] == pytest.approx(card.measured[-1].perplexity, rel=1e-4)
    assert found["scaled"] == pytest.approx(found["float16"], rel=1e-3)
    assert found["s = 1"] > 1000
