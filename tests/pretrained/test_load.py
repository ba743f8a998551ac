"""Loading: the right weights in the right places, and nothing half-loaded."""

import json
import tracemalloc
from importlib import import_module

import jax
import numpy as np
import pytest
from flax import nnx

from normlab import pretrained
from normlab.evaluation.metadata import of_model
from normlab.evaluation.perplexity import score
from normlab.numerics import Precision
from normlab.pretrained.gguf import GGUF
from normlab.pretrained.huggingface import Safetensors
from normlab.registry import UnknownNameError
from normlab.scaling import scales
from tests.conftest import same_trees
from tests.support import small_checkpoints
from tests.support.reference_forward import forward, log_softmax
from tests.support.scored_windows import BATCH, windows
from tests.support.small_checkpoints import (
    ALL,
    BERT,
    CONFIGS,
    HEAD,
    HEADS,
    LAYERS,
    VOCAB,
    WIDTH,
    log_probs,
    tensors,
    write_folder,
    write_gguf,
)

loading = import_module("normlab.pretrained.load")  # the module: the package's `load` hides it
TOKENS = np.random.default_rng(1).integers(0, VOCAB, (2, 12))


def write(family, folder, **changes):
    config = {**ALL[family], **changes}
    return write_folder(folder, config, tensors(family))


@pytest.mark.system
@pytest.mark.parametrize("family", ALL)
def test_each_family_is_its_reference_in_float64_from_either_format(family, tmp_path):
    """A GGUF file's model is the folder's: one program, the same bits."""
    lm = pretrained.load(write(family, tmp_path / "m"))
    expected = log_softmax(forward(family, ALL[family], tensors(family), TOKENS))
    assert expected.std() > 0.1
    np.testing.assert_allclose(log_probs(lm, TOKENS), expected, rtol=0, atol=2e-5)
    assert (lm.name, lm.facts["config"]["model"]["width"]) == ("m", WIDTH)
    assert lm.facts["family"] == ALL[family]["model_type"]
    assert list(lm.facts["sha256"]) == ["model.safetensors"]
    assert ("1 + w" in lm.facts["weight"]) == family.startswith("gemma")
    json.dumps(lm.facts)
    if family != "bert":
        spec = write_gguf(tmp_path / "m.gguf", family, CONFIGS[family], tensors(family))
        other = pretrained.load(spec)
        assert other.facts["config"] == lm.facts["config"]
        (ours, weights), (theirs, in_gguf) = nnx.split(lm.model), nnx.split(other.model)
        assert ours == theirs
        assert same_trees(weights, in_gguf)


@pytest.mark.system
@pytest.mark.parametrize("family", CONFIGS)
def test_layers_that_are_read_one_at_a_time_are_the_model_bit_for_bit(family, tmp_path):
    """Scores, what norms saw, a rule's scales, the weights' hash; and nothing stays."""
    checkpoint = pretrained.describe(write(family, tmp_path / "m"))
    whole, streamed = checkpoint.load(), checkpoint.load(stream=True)
    matrices = [x for x in jax.tree.leaves(nnx.state(streamed.model.blocks)) if len(x.shape) > 1]
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in matrices)
    given = scales(whole.model, "random_tokens")
    assert same_trees(given, scales(streamed.model, "random_tokens"))
    ours, theirs = (
        score(lm.model, windows(), Precision.parse("fp16:pairwise"), given, batch=BATCH)
        for lm in (whole, streamed)
    )
    assert ours.token_nll.tobytes() == theirs.token_nll.tobytes()
    assert ours.sites == theirs.sites
    about = [of_model(lm, "none") for lm in (whole, streamed)]
    assert about[0] == about[1]


# --- the same weights, otherwise spelled


def without_prefix(weights):
    """And with the mask that old files hold."""
    mask = {"h.0.attn.bias": np.ones((1, 1, 64, 64), np.float32)}
    return {k.removeprefix("transformer."): v for k, v in weights.items()} | mask


def seen_by(prefix):
    """As the text part of a model that sees has it."""

    def spelled(weights):
        seen = {name.replace("model.", prefix, 1): value for name, value in weights.items()}
        part = "model." if prefix.startswith("model.") else ""
        for name in ("vision_tower.x.weight", "multi_modal_projector.mm_soft_emb_norm.weight"):
            seen[part + name] = np.ones(3, np.float32)
        return seen

    return spelled


def old_norm_names(weights):
    spelled = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    ends = {k: ".".join(k.split(".")[-2:]) for k in weights}
    old = {k.replace(end, spelled.get(end, end)): weights[k] for k, end in ends.items()}
    assert sum("gamma" in name for name in old) == 1 + 2 * LAYERS
    return old


def with_heads(weights):
    heads = ("classifier", "qa_outputs", "cls.predictions", "pooler.dense")
    return weights | {f"{head}.bias": np.zeros(2, np.float32) for head in heads}


SEES = {"model_type": "gemma3", "text_config": CONFIGS["gemma3"]}
SPELLINGS = {
    "without a prefix": ("gpt2", CONFIGS["gpt2"], without_prefix),
    "a gemma3 that sees": ("gemma3", SEES, seen_by("language_model.model.")),
    "a newer one": ("gemma3", SEES, seen_by("model.language_model.")),
    "old names of norms": ("bert", BERT, old_norm_names),
    "heads on an encoder": ("bert", BERT, with_heads),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_what_is_spelled_otherwise_is_the_same_model(case, tmp_path):
    family, config, spelled = SPELLINGS[case]
    weights = tensors(family)
    a = pretrained.load(write_folder(tmp_path / "a", config, spelled(weights))).model
    b = pretrained.load(write_folder(tmp_path / "b", ALL[family], weights)).model
    assert a.head is b.head is None
    assert same_trees(nnx.state(a), nnx.state(b))


def test_a_tied_folder_may_hold_its_head_twice(tmp_path):
    weights = tensors("llama")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    twice = write_folder(tmp_path / "a", {**CONFIGS["llama"], "tie_word_embeddings": True}, weights)
    assert pretrained.load(twice).model.head is None


def test_a_tied_folder_may_hold_its_head_alone_but_no_other_one(tmp_path):
    tied, weights = {**CONFIGS["llama"], "tie_word_embeddings": True}, tensors("llama")
    weights.pop("lm_head.weight")
    whole = pretrained.load(write_folder(tmp_path / "a", tied, weights)).model
    alone = dict(weights)
    alone["lm_head.weight"] = alone.pop("model.embed_tokens.weight")
    found = pretrained.load(write_folder(tmp_path / "b", tied, alone)).model
    assert same_trees(nnx.state(found), nnx.state(whole))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    with pytest.raises(
        pretrained.CheckpointError, match=r"lm_head.weight is not model.embed_tokens.weight: ex"
    ):
        pretrained.load(write_folder(tmp_path / "c", tied, weights))


def test_two_names_of_one_weight_are_refused(tmp_path):
    weights = tensors("llama")
    weights["embed_tokens.weight"] = weights["model.embed_tokens.weight"] + 1
    with pytest.raises(
        pretrained.CheckpointError, match="are two names of one weight: expected one of them"
    ):
        pretrained.load(write_folder(tmp_path / "a", CONFIGS["llama"], weights))


def test_a_head_of_gpt2_is_stored_as_pytorch_does(tmp_path):
    """The one map of a GPT-2 directory that is [out, in]."""
    weights = tensors("gpt2")
    weights["lm_head.weight"] = np.random.default_rng(2).standard_normal((VOCAB, WIDTH), np.float32)
    untied = {**CONFIGS["gpt2"], "tie_word_embeddings": False}
    a = pretrained.load(write_folder(tmp_path / "m", untied, weights)).model
    b = pretrained.load(write_gguf(tmp_path / "m.gguf", "gpt2", CONFIGS["gpt2"], weights)).model
    np.testing.assert_array_equal(a.head.kernel[...], weights["lm_head.weight"].T)
    assert same_trees(nnx.state(a), nnx.state(b))


# --- before a weight is read


def test_describe_reads_no_weight(tmp_path, monkeypatch):
    specs = [
        write("llama", tmp_path / "m"),
        write_gguf(tmp_path / "m.gguf", "llama", CONFIGS["llama"], tensors("llama")),
    ]
    for source in (Safetensors, GGUF):
        monkeypatch.setattr(source, "read", lambda *_: pytest.fail("a weight was read"))
    for spec in specs:
        found = pretrained.describe(spec)
        assert found.configs.model.max_length == 64
        assert found.configs.placement.type == "pre"
        assert found.tokenizer().vocab_size in (256, 257)


UP = "model.layers.0.mlp.up_proj.weight"
BIAS = "model.layers.1.self_attn.q_proj.bias"
TYPES = "bert.embeddings.token_type_embeddings.weight"
TYPES_MISSING = "lacks the tensor embeddings.token_type_embeddings.weight"


def zeros(name, *shape):
    return lambda weights: weights | {name: np.zeros(shape, np.float32)}


def without(name):
    return lambda weights: {k: v for k, v in weights.items() if k != name}


BROKEN = {
    "missing": ("llama", {}, without(UP), "lacks the tensor layers.0.mlp.up_proj.weight"),
    "unexpected": ("llama", {}, zeros(BIAS, HEADS * HEAD), f"holds {BIAS}, which a llama"),
    "more layers": ("llama", {"num_hidden_layers": 1}, dict, " and 8 more, which a llama"),
    "transposed": (
        "llama", {}, zeros(UP, 24, 40), "up_proj.weight has shape (24, 40), its config says (40, 24"
    ),
    "no floats": (
        "llama", {}, lambda w: w | {UP: w[UP].astype(np.int8)},
        "up_proj.weight is of type I8: expected plain floats",
    ),
    "another's tokenizer": (
        "llama", {"vocab_size": 9}, zeros("model.embed_tokens.weight", 9, 24),
        "the tokenizer has ids up to 255, the embedding 9 rows",
    ),
    "a head of no floats": (
        "llama", {"tie_word_embeddings": True},
        lambda w: w | {"lm_head.weight": w["lm_head.weight"].astype(np.int8)},
        "lm_head.weight is of type I8: expected plain floats",
    ),
    "no types": ("bert", {}, without(TYPES), TYPES_MISSING),
    "one column": ("bert", {}, zeros(TYPES, 2, 1), "shape (2, 1), expected 24 columns and a row"),
    "no row": ("bert", {}, zeros(TYPES, 0, 24), "has shape (0, 24), expected"),
    "no matrix": ("bert", {}, zeros(TYPES, 24), "has shape (24,), expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_before_a_weight_is_read(case, tmp_path, monkeypatch):
    family, changes, broken, message = BROKEN[case]
    spec = write_folder(tmp_path / "m", {**ALL[family], **changes}, broken(tensors(family)))
    monkeypatch.setattr(Safetensors, "read", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(pretrained.CheckpointError) as caught:
        pretrained.load(spec)
    assert message in str(caught.value)


def test_ids_that_begin_a_text_have_rows(tmp_path):
    spec = write("llama", tmp_path / "m", bos_token_id=VOCAB)
    with pytest.raises(pretrained.CheckpointError, match="bos_token_id = 260: expected .*0 to 259"):
        pretrained.describe(spec).tokenizer()


def test_a_record_tells_what_was_switched_off(tmp_path):
    spec = write("llama", tmp_path / "m")
    assert "tokenizer" not in pretrained.load(spec).facts
    tokenizer = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    tokenizer["model"]["dropout"] = 0.1
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert pretrained.load(spec).facts["tokenizer"] == "BPE dropout = 0.1, switched off"


def test_more_layers_than_tensors_are_refused_before_they_are_laid_out(tmp_path):
    spec = write("llama", tmp_path / "m", num_hidden_layers=2**24)
    with pytest.raises(pretrained.CheckpointError, match="21 tensors, its config says 16777216 la"):
        pretrained.load(spec)


@pytest.mark.parametrize("special", [True, False])
def test_only_special_tokens_may_lack_a_row(special, tmp_path):
    from tokenizers import AddedToken, Tokenizer

    spec = write("llama", tmp_path / "m", vocab_size=256)
    tokenizer = Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<image>", special=special)])
    tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    if special:
        assert pretrained.describe(spec).tokenizer().vocab_size == 256
    else:
        with pytest.raises(pretrained.CheckpointError, match="ids up to 256, the embedding 256"):
            pretrained.describe(spec).tokenizer()


def test_specs_that_name_nothing(tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2-135m'"):
        pretrained.describe("smollm2-135")
    with pytest.raises(pretrained.CheckpointError, match="there is no such directory"):
        pretrained.describe(f"hf:{tmp_path}/nothing")
    with pytest.raises(pretrained.CheckpointError, match="there is no such file"):
        pretrained.describe(f"gguf:{tmp_path}/nothing.gguf")
    with pytest.raises(pretrained.CheckpointError, match=r"has no config\.json"):
        pretrained.describe(f"hf:{tmp_path}")
    spec = write("llama", tmp_path / "m", model_type="olmo4")
    with pytest.raises(pretrained.CheckpointError, match="unknown architecture 'olmo4'.*'olmo'"):
        pretrained.describe(spec)


# --- end to end


@pytest.mark.system
@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_the_host_holds_the_model_and_one_tensor(form, tmp_path, monkeypatch):
    """NumPy's memory beside what is on the device, as it is read, laid out and copied."""
    monkeypatch.setattr(small_checkpoints, "VOCAB", 40_000)  # embedding and head: 3.7 MiB each
    weights, config = tensors("llama"), {**CONFIGS["llama"], "vocab_size": 40_000}
    if form == "gguf":
        spec = write_gguf(tmp_path / "m.gguf", "llama", config, weights)
    else:
        spec = write_folder(tmp_path / "m", config, weights)
    sizes = [w.nbytes for w in weights.values()]
    put, on_device, peaks = loading.put, [], []

    def watched(path, x):
        peaks.append(sum(on_device) + tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        copied = jax.block_until_ready(put(path, x))
        taken_over = copied.unsafe_buffer_pointer() == x.ctypes.data  # where it is aligned
        on_device.append(0 if taken_over else x.nbytes)
        peaks.append(sum(on_device) + tracemalloc.get_traced_memory()[1])
        tracemalloc.reset_peak()
        return copied

    monkeypatch.setattr(loading, "put", watched)
    checkpoint = pretrained.describe(spec)
    del weights
    tracemalloc.start()
    try:
        checkpoint.load()
    finally:
        tracemalloc.stop()
    assert len(peaks) == 2 * len(sizes)
    python = 2**20  # objects, the tokenizer's among them
    assert sum(sizes) < max(peaks) < sum(sizes) + max(sizes) + python


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("smollm2-135m", marks=pytest.mark.system),
        pytest.param("gemma3-270m", marks=pytest.mark.extended),
    ],
)
def test_a_real_model_knows_the_capital_of_france(name):
    try:
        lm = pretrained.load(name)
    except pretrained.CheckpointError as error:
        pytest.skip(str(error))
    bos = [] if lm.tokenizer.bos is None else [lm.tokenizer.bos]
    ids = [*bos, *lm.tokenizer.encode("The capital of France is").ids]
    best = log_probs(lm, np.array([ids]))[0, -1].argsort()[::-1][:3]
    assert " Paris" in [lm.tokenizer.decode([i]) for i in best]
