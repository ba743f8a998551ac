"""Configs of checkpoints in our terms: what is read, what is refused."""

import math

import numpy as np
import pytest

from normlab.norms import norms
from normlab.pretrained.families import architectures, configs, families
from normlab.pretrained.families.gemma3 import text_config
from normlab.pretrained.gguf import GGUF, gguf_config
from normlab.pretrained.source import CheckpointError
from tests.support.small_checkpoints import ALL, CONFIGS, EPS, HEAD, WIDTH, write_gguf


def read(family, **changes):
    return configs({**CONFIGS[family], **changes}, "config.json")[1]


def model(family, **changes):
    return read(family, **changes).model


def in_gguf(folder, family, config=None, **metadata):
    """A GGUF file of no weights; what its metadata says."""
    write_gguf(folder / "m.gguf", family, config or CONFIGS[family], {}, **metadata)
    file = GGUF(folder / "m.gguf")
    return file, lambda: {**gguf_config(file), "vocab_size": 260, "tie_word_embeddings": True}


def without(family, *keys):
    return {key: value for key, value in CONFIGS[family].items() if key not in keys}


SITES = {
    "llama": {"norm_in", "norm_final"},
    "qwen2": {"norm_in", "norm_final"},
    "qwen3": {"norm_in", "norm_final", "norm_qk"},
    "olmo2": {"norm_out", "norm_final", "norm_qk"},
    "gemma2": {"norm_in", "norm_out", "norm_final"},
    "gemma3": {"norm_in", "norm_out", "norm_final", "norm_qk"},
    "gpt2": {"norm_in", "norm_final"},
}


def test_where_norms_sit():
    for family, sites in SITES.items():
        found = read(family)
        assert found.placement.sites(found.model.layers) == sites
        assert found.norm == norms["layernorm" if family == "gpt2" else "rmsnorm"].Config(eps=EPS)
        assert found.placement.norm_qk_full == (family == "olmo2")


def test_what_each_family_adds():
    assert model("llama").tied is False
    assert model("qwen2").qkv_bias is True
    assert model("gemma3").tied is True
    assert model("gemma3").embed_factor == math.sqrt(24)
    assert model("gemma3", query_pre_attn_scalar=4).attention_scale == 0.5
    assert model("gemma2").attention_softcap == 2.0
    assert model("gemma2").logit_softcap == 3.0
    assert model("gpt2").hidden == 96
    assert model("gpt2", n_inner=50).hidden == 50


def test_gemma_reads_hidden_activation_where_both_are_given():
    both = {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh"}
    assert model("gemma3", **both).activation == model("gemma3").activation
    only = {"hidden_act": "silu", "hidden_activation": None}
    assert model("gemma3", **only).activation == model("llama").activation


CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


@pytest.mark.parametrize(("family", "unsaid"), [("gemma2", (50.0, 30.0)), ("gemma3", (None, None))])
def test_a_soft_cap_of_null_or_0_is_none_and_an_unsaid_one_the_familys(family, unsaid, tmp_path):
    bare = without(family, *CAPS)
    _, said = in_gguf(tmp_path, family, bare)
    for config in (bare, said()):
        found = configs(config, "config.json")[1].model
        assert (found.attention_softcap, found.logit_softcap) == unsaid
    for none in (None, 0.0):
        uncapped = model(family, **dict.fromkeys(CAPS, none))
        assert (uncapped.attention_softcap, uncapped.logit_softcap) == (None, None)


def test_an_unsaid_rope_theta_is_the_familys(tmp_path):
    assert model("llama", rope_theta=None).rope_theta == 1e4
    assert model("gemma2", rope_theta=None).rope_theta == 1e4
    three = model("gemma3", rope_theta=None, rope_local_base_freq=None)
    assert (three.rope_theta, three.local_rope_theta) == (1e6, 1e4)
    _, said = in_gguf(tmp_path, "gemma3", without("gemma3", "rope_theta"))
    assert said()["rope_theta"] == 1e4  # llama.cpp's, of all


def test_the_text_part_of_a_gemma3_that_sees():
    """As google/gemma-3-4b-it's config.json has it, which leaves unsaid what is the default."""
    rope = {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    size = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    config = {
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "text_config": {**size, **rope, "model_type": "gemma3_text"},
        "vision_config": {"hidden_size": 1152},
    }
    text = text_config(config)
    family, found = configs(text, "config.json")
    assert (family, found.vocab_size, text["eos_token_id"]) == ("gemma3_text", 262_208, [1, 106])
    m = found.model
    assert (m.width, m.layers, m.heads, m.kv, m.head_size) == (2560, 34, 8, 4, 256)
    assert (m.window, m.global_every, m.rope_theta, m.local_rope_theta) == (1024, 6, 1e6, 1e4)
    assert (m.rope_divisors[0], m.attention_scale, m.tied) == (8.0, 1 / 16, True)
    assert text_config(CONFIGS["gemma3"]) is CONFIGS["gemma3"]


@pytest.mark.parametrize(("family", "expected"), [("gemma2", (4096, 2)), ("gemma3", (None, None))])
def test_a_gguf_file_that_names_no_window_has_llama_cpps(family, expected, tmp_path):
    bare = without(family, "sliding_window", "sliding_window_pattern")
    _, said = in_gguf(tmp_path, family, bare)
    found = configs(said(), "m.gguf")[1].model
    assert (found.window, found.global_every) == expected


def test_a_part_of_a_gguf_file_says_so(tmp_path):
    _, said = in_gguf(tmp_path, "llama", **{"split.count": 2})
    with pytest.raises(
        CheckpointError, match=r"m\.gguf is one of split\.count = 2 parts: expected"
    ):
        said()


def test_local_and_global_blocks():
    two = model("gemma2", num_hidden_layers=3)
    three = model("gemma3", num_hidden_layers=12, sliding_window_pattern=None)
    assert [two.local(i) for i in range(3)] == [True, False, True]
    assert [i for i in range(12) if not three.local(i)] == [5, 11]
    assert (three.window, three.rope_theta, three.local_rope_theta) == (5, 500.0, 50.0)
    types = ["sliding_attention", "sliding_attention", "full_attention"]

    def every(*types):
        own = {"sliding_window_pattern": None, "layer_types": list(types)}
        return model("gemma3", num_hidden_layers=3, **own)

    assert every(*types).global_every == 3
    assert every(*["full_attention"] * 3).window is None
    assert every(*["sliding_attention"] * 3).global_every is None
    with pytest.raises(CheckpointError, match="not every n-th layer global"):
        every("full_attention", *types[:2])
    with pytest.raises(
        CheckpointError, match=r"unknown word in layer_types 'local'.*full_attention, s"
    ):
        every("local", *types[:2])
    with pytest.raises(CheckpointError, match="layer_types has 2 entries: expected 3"):
        every(*types[:2])


def test_gemmas_activation_is_the_familys():
    """By `gelu` under its older key the family means tanh."""
    for family in ("gemma2", "gemma3"):
        older = {"hidden_activation": None, "hidden_act": "gelu"}
        assert model(family, **older).activation == "gelu_tanh"
        assert model(family, hidden_activation="gelu").activation == "gelu"


def test_llama3_stretches_slow_turns_only():
    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    for given in ({"rope_scaling": rope}, {"rope_parameters": {**rope, "rope_theta": 500.0}}):
        found = model("llama", **given).rope_divisors
        assert len(found) == HEAD // 2
        for i, divisor in enumerate(found):
            wave = 2 * math.pi * 500.0 ** (2 * i / HEAD)
            if wave < 64 / 4:
                expected = 1.0
            elif wave > 64 / 1:
                expected = 8.0
            else:
                kept = (64 / wave - 1) / (4 - 1)
                expected = 1 / ((1 - kept) / 8 + kept)
            assert divisor == pytest.approx(expected, rel=1e-12)
        assert found[0] == 1.0
        assert found[-1] == 8.0


def test_linear_scaling_and_what_means_nothing():
    linear = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    assert model("llama", **linear).rope_divisors == (4.0,) * 4
    assert model("llama", pretraining_tp=2) == model("llama")  # products sharded in training


# --- every value has its type and its bounds

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SOME = {  # of each family, a config in which every key is there that is read
    "llama": {
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
    "qwen2": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "qwen3": {"layer_types": ["full_attention"] * 2},
    "gemma2": {
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8.0,
    },
    "gemma3": {
        "query_pre_attn_scalar": 8.0,
        "partial_rotary_factor": 1.0,
        "rope_parameters": {"sliding_attention": {"rope_theta": 50.0}},
    },
    "gpt2": {"n_inner": 50, "activation_function": "gelu_new"},
    "bert": {"position_embedding_type": "absolute"},
}  # fmt: skip
WRONG = [
    True, False, 0, -1, 0.5, -0.5, 260.5, 2**40, 10**400, math.nan, math.inf, -math.inf, "", "x",
    "24", [], [1], [[]], {}, {"a": 1}, [None, None],
]  # fmt: skip


def leaves(values, path=()):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        yield (*path, key), value


def replaced(values, path, value):
    inner = values[path[0]]
    return {**values, path[0]: replaced(inner, path[1:], value) if path[1:] else value}


def accepted(value, wrong):
    """Whether one may stand for the other: another word, number or flag of its kind and bounds."""
    if isinstance(value, bool):
        return isinstance(wrong, bool)
    if isinstance(value, int):
        return False
    number = isinstance(wrong, (int, float)) and not isinstance(wrong, bool)
    return isinstance(value, float) and number and 0 <= wrong < math.inf


@pytest.mark.parametrize("family", SOME)
def test_a_value_of_another_type_or_out_of_bounds_is_refused_by_name(family):
    """Whatever stands in the place of a number, a word, a flag, a list: no traceback, no guess."""
    whole = {key: v for key, v in {**ALL[family], **SOME[family]}.items() if v is not None}
    assert configs(whole, "config.json")
    for path, value in leaves(whole):
        name = "architecture" if path[-1] == "model_type" else path[-1].replace("_", ".")
        for wrong in WRONG:
            if accepted(value, wrong) or (isinstance(value, dict) and isinstance(wrong, dict)):
                continue
            given = replaced(whole, path, wrong)
            with pytest.raises(CheckpointError, match=name):
                pytest.fail(f"{path} = {wrong!r} was read: {configs(given, 'config.json')}")


def local_rope(**fields):
    return {"rope_parameters": {"sliding_attention": fields}}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"model_type": "lama"}, "unknown .*Did you mean 'llama'.*=torch:DIR"),
        ("llama", {"model_type": None}, "unknown architecture"),
        ("llama", {"hidden_size": None}, "config.json has no 'hidden_size'"),
        ("llama", {"hidden_size": "24"}, "hidden_size = '24': expected a whole number, 1 to"),
        ("llama", {"hidden_act": "gelu_nw"}, "unknown hidden_act 'gelu_nw'. .*'gelu_new'"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantized by gptq: expected"),
        ("llama", {"model_type": "llava", "text_config": {"a": 1}}, "multimodal .*gemma3_text"),
        ("llama", {"rope_scaling": {"type": "dynamic"}}, "unknown rope_type 'dynamic'"),
        (
            "llama",
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "the yarn rope scaling of .* has no 'original_max_position_embeddings'",
        ),
        (
            "llama",
            {"rope_scaling": {**YARN, "mscale": 0.7}},
            "mscale = 0.7, which is not supported",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "yarn"}},
            "rope_type = 'yarn' in rope_scaling, 'default' in rope_parameters: expected one",
        ),
        (
            "llama",
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 2e4}},
            "rope_theta = 10000.0 in config, 20000.0 in rope_parameters",
        ),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_theta": 60.0}}},
            "rope_theta = 50.0 in rope_local_base_freq, 60.0 in rope_parameters",
        ),
        (
            "gemma3",
            {"layer_types": ["sliding_attention"] * 2},
            "global by {'sliding_window_pattern': 2, 'layer_types': 3}: expected one n",
        ),
        ("gemma3", {"_sliding_window_pattern": 1}, "'_sliding_window_pattern': 1}: expected one n"),
        ("llama", {"rope_scaling": {"factor": 2.0}}, "factor = 2.0, which is not supported"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "sliding layers in layer_types"),
        ("llama", {"layer_types": ["full_attention"]}, "layer_types has 1 entries: expected 2"),
        (
            "llama",
            {"rope_scaling": SOME["llama"]["rope_parameters"] | {"high_freq_factor": 1.0}},
            "low_freq_factor = 1.0 and high_freq_factor = 1.0: expected the first to be less",
        ),
        ("llama", {"rope_scaling": {"type": "linear"}}, "the linear rope scaling .* no 'factor'"),
        (
            "llama",
            {"rope_scaling": {"type": "llama3", "factor": 2.0}},
            "the llama3 rope scaling of config.json has no 'low_freq_factor'",
        ),
        ("llama", {"num_key_value_heads": 3}, "the nearest number of key/value heads"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window = True"),
        ("qwen3", {"attention_bias": True}, "attention_bias = True"),
        ("olmo2", {"attention_bias": True}, "attention_bias = True"),
        ("olmo2", {"sliding_window": 4096}, "sliding_window = 4096"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", local_rope(rope_type="linear", factor=8.0), "positions in local layers: .*8.0"),
        ("gemma3", local_rope(partial_rotary_factor=0.5), "partial rotary positions in .*0.5"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"is_causal": False}, "is_causal = False, which is not supported"),
        ("qwen2", {"is_causal": False}, "is_causal = False, which is not supported"),
    ],
)
def test_what_cannot_be_computed_is_refused(family, changes, message):
    with pytest.raises(CheckpointError, match=message):
        read(family, **changes)


@pytest.mark.parametrize(
    ("said", "divisors"),
    [
        ({"scaling.type": "linear", "scaling.factor": 2.0}, (2.0,) * 4),
        ({"scaling.factor": 2.0}, (2.0,) * 4),
        ({"scale_linear": 2.0}, (2.0,) * 4),
        ({"scale_linear": 2.0, "scaling.factor": 4.0}, (4.0,) * 4),
        ({"scaling.type": "none", "scaling.factor": 2.0}, ()),
        ({"scaling.type": "linear"}, ()),
        ({"scaling.factor": 0.0}, ()),
        ({"scaling.factor": 1.0}, ()),
    ],
)
def test_gguf_scaled_positions(said, divisors, tmp_path):
    rope = {f"llama.rope.{key}": value for key, value in said.items()}
    _, found = in_gguf(tmp_path, "llama", **rope)
    assert configs(found(), "m.gguf")[1].model.rope_divisors == divisors


def test_gguf_positions_are_scaled_in_one_way(tmp_path):
    path, freqs = tmp_path / "a.gguf", np.full(HEAD // 2, 2.0, np.float32)
    write_gguf(path, "llama", CONFIGS["llama"], {"rope_freqs.weight": freqs})
    file = GGUF(path)
    assert gguf_config(file)["rope_scaling"]["divisors"] == [2.0] * 4
    file.metadata["llama.rope.scaling.factor"] = 8.0
    with pytest.raises(CheckpointError, match=r"rope_freqs.* linear rope scaling by 8\.0"):
        gguf_config(file)


def test_gguf_gemma_27b_shares_the_width_over_its_heads(tmp_path):
    """llama.cpp's only departure from the head size as the queries' scale."""
    file, said = in_gguf(tmp_path, "gemma2")
    assert said()["query_pre_attn_scalar"] == HEAD
    file.metadata["gemma2.block_count"] = 46
    assert said()["query_pre_attn_scalar"] == WIDTH // 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "qwen4"}, "unknown general.architecture 'qwen4'. Did you mean"),
        ({"llama.embedding_length": None}, "has no 'llama.embedding_length'"),
        ({"llama.attention.causal": False}, "llama.attention.causal = False"),
        ({"llama.attention.head_count": 0}, "head_count = 0: expected a whole number, 1 to"),
        ({"llama.attention.head_count": [4, 4]}, r"head_count = \[4, 4\]: expected a whole"),
        ({"llama.attention.key_length": 8.0}, "key_length = 8.0: expected a whole number, 1 to"),
        ({"llama.context_length": "64"}, "max_position_embeddings = '64': expected a whole num"),
        ({"llama.rope.freq_base": math.inf}, "rope_theta = inf: expected a number > 0, at most"),
        ({"llama.rope.scaling.factor": -1.0}, "scaling.factor = -1.0: expected a number ≥ 0"),
        ({"split.count": "2"}, "is one of split.count = '2' parts: expected one file"),
        ({"llama.rope.scaling.type": "longrope"}, "unknown rope_type 'longrope'"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": 0.5},
            "attn_factor = 0.5, which is not supported",
        ),
        ({"llama.rope.scaling.attn_factor": 1.19}, "attn_factor = 1.19, which is not supported"),
        ({"llama.rope.dimension_count": 4}, "rotary positions on 4 of 8 elements"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "has no 'rms_norm_eps'"),
    ],
)
def test_broken_metadata(changes, message, tmp_path):
    file, said = in_gguf(tmp_path, "llama")
    file.metadata.update(changes)
    with pytest.raises(CheckpointError, match=message):
        configs(said(), "m.gguf")


def test_every_family_that_gguf_knows_has_names():
    assert set(architectures().values()) == {n for n in families if families[n].gguf}
