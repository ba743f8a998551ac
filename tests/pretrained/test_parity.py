"""Our Transformer against `transformers` on PyTorch, family by family (`pip install .[torch]`)."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab import pretrained
from normlab.model import Context
from tests.support.family_golden import CASES, PLAIN, golden, made
from tests.support.small_checkpoints import log_probs, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("default"),  # other packages' warnings are theirs
]

TOLERANCE = 1e-4  # of a log-probability in float32
LENGTH = 24


def config_class(name: str):
    return getattr(transformers, f"{name}Config")


def make(name: str, settings: dict[str, object], kind: str = "ForCausalLM"):
    """A model of theirs whose every parameter, norms' too, is off its initial value."""
    torch.manual_seed(0)
    stem = "Gemma3" if name == "Gemma3Text" and kind == "ForCausalLM" else name
    if name == "GPT2" and kind == "ForCausalLM":
        kind = "LMHeadModel"
    model = getattr(transformers, f"{stem}{kind}")(config_class(name)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def their_log_probs(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor(tokens)).logits, -1).numpy()


def random_tokens(vocab_size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (2, LENGTH))


@pytest.mark.parametrize("case", CASES)
def test_what_is_kept_is_what_transformers_compute(case: str) -> None:
    """Config, names, shapes and log-probabilities, with which test_golden.py compares ours."""
    kept, found = golden()[case], made(*CASES[case])
    assert found["shapes"] == kept["shapes"]
    assert found["config"].keys() - {"transformers_version"} <= kept["config"].keys()
    # Cosines of positions are float32 there, and another processor's differ: seen up to 1.2e-6.
    np.testing.assert_allclose(found["log_probs"], kept["log_probs"], rtol=0, atol=1e-5)


def test_a_gemma3_that_sees_reads_text_as_transformers_do(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {**CASES["gemma3_text"][1], "vocab_size": 300}
    settings = {"text_config": text, "vision_config": vision, "mm_tokens_per_image": 4}
    ids = {"image_token_index": 299, "boi_token_index": 298, "eoi_token_index": 297}
    model = make("Gemma3", settings | ids, "ForConditionalGeneration")
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    tokens = random_tokens(290)
    theirs = their_log_probs(model, tokens)
    ours = log_probs(pretrained.load(f"hf:{tmp_path}"), tokens)
    print(f"gemma3 that sees: largest |Δ log p| {np.abs(ours - theirs).max():.2e}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def our_hidden(spec: str, tokens: np.ndarray) -> np.ndarray:
    """The stream behind the last block, which is all that an encoder gives."""
    model, context = pretrained.load(spec).model, Context()
    x = model.embed_tokens(jnp.asarray(tokens), context)
    for block in model.blocks:
        x = block(x, context)
    return np.asarray(x)


def test_bert_hidden_states_equal_transformers(tmp_path: Path) -> None:
    settings = {k: v for k, v in PLAIN.items() if k != "pad_token_id"}
    model = make("Bert", settings, "Model")
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    tokens = random_tokens(300)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).last_hidden_state.numpy()
    ours = our_hidden(f"hf:{tmp_path}", tokens)
    print(f"bert: largest |Δ hidden| {np.abs(ours - theirs).max():.2e}")
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_a_real_encoder_equals_transformers() -> None:
    name = "all-minilm-l6-v2"
    try:
        folder = pretrained.fetch(name)
    except pretrained.CheckpointError as error:
        pytest.skip(str(error))
    text = "The quick brown fox, 1,234 years old: naïve, it's 50 % of 日本."
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    tokenizer = pretrained.describe(name).tokenizer()
    assert [tokenizer.bos, *tokenizer.encode(text).ids] == ids[:-1]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).last_hidden_state.numpy()
    ours = our_hidden(name, np.array([ids]))
    print(f"{name}: largest |Δ hidden| {np.abs(ours - expected).max():.2e}")
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE)


TEXTS = (
    "The quick brown fox, 1,234 years old — naïve, “quoted”: it's 50 % of Σx²…\n\n = Title = \n",
    " \t leading blanks,  two  blanks,    four\n\n\n\ttabs\t\t 日本語 🙂 <b>bold</b> e\u0301\u00a0",
    " Robert <unk> is an English film , television and theatre actor @-@ 2000 @,@ 5 . ½ \n",
)
# XLA's newer kernels for matrices on a CPU sum less exactly: with them the largest difference over
# a whole vocabulary is 1.2e-4, and half of that without.
EXACT = {"xla_cpu_experimental_ynn_fusion_type": ""} if jax.default_backend() == "cpu" else None


@pytest.fixture(scope="module", params=["gemma3-270m", "smollm2-135m"])
def real(request: pytest.FixtureRequest):
    """A real checkpoint's file, ours and theirs."""
    try:
        file = pretrained.fetch(request.param)
    except pretrained.CheckpointError as error:
        pytest.skip(str(error))
    load = {"gguf_file": file.name, "dtype": torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(file.parent, **load).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if request.param == "smollm2-135m":
        # Its GGUF path leaves out what the model's own tokenizer.json does first: digits apart.
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

        backend = tokenizer.backend_tokenizer
        level = ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = Sequence([Digits(individual_digits=True), level])
    return pretrained.load(request.param), theirs, tokenizer


def test_a_real_tokenizer_equals_transformers(real) -> None:
    ours, _, tokenizer = real
    for text in (*TEXTS, wikitext_sample()):
        ids = ours.tokenizer.encode(text).ids
        assert ids.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ours.tokenizer.decode(ids) == text
    bos = [] if ours.tokenizer.bos is None else [ours.tokenizer.bos]
    assert tokenizer("a")["input_ids"] == [*bos, *ours.tokenizer.encode("a").ids]


def wikitext_sample() -> str:
    """The validation split, where NORMLAB_DATA says where it is."""
    folder = os.environ.get("NORMLAB_DATA")
    if folder is None:
        return ""
    return (Path(folder) / "wikitext-2-raw-v1" / "wiki.valid.raw").read_text(encoding="utf-8")


def test_a_real_model_equals_transformers(real) -> None:
    """Theirs in float64: in float32 it is up to 1.3e-4 from that itself."""
    ours, theirs, _ = real
    bos = [] if ours.tokenizer.bos is None else [ours.tokenizer.bos]
    ids = [*bos, *(i for text in TEXTS for i in ours.tokenizer.encode(text).ids)]
    tokens = np.array([ids[:64]])
    expected = their_log_probs(theirs.double(), tokens)
    graphdef, params = nnx.split(ours.model)

    def forward(params, tokens):
        return jax.nn.log_softmax(nnx.merge(graphdef, params)(tokens, Context()))

    for options in (None, EXACT):
        found = np.asarray(jax.jit(forward, compiler_options=options)(params, tokens))
        scored, theirs_scored = (
            np.take_along_axis(x[:, :-1], tokens[:, 1:, None], -1) for x in (found, expected)
        )
        every, scored_worst = np.abs(found - expected).max(), np.abs(scored - theirs_scored).max()
        print(f"{ours.name}, {options}: largest |Δ log p| {every:.2e}, scored {scored_worst:.2e}")
        assert scored_worst < TOLERANCE
        assert every < (2 * TOLERANCE if options is None else TOLERANCE)
