"""The cases of `family_golden` as GGUF files that we write."""

from normlab import pretrained
from normlab.pretrained.export import gguf
from normlab.pretrained.export.gguf import Value
from normlab.pretrained.export.gguf_tokenizer import tokenizer_words
from normlab.pretrained.families import families
from tests.support.byte_level import bpe
from tests.support.family_golden import golden, write

GOLDEN = golden()
CASES = [c for c in GOLDEN if families[GOLDEN[c]["config"]["model_type"]].gguf is not None]
"""Of the families that llama.cpp has."""
TEXT = "A page: it's naïve, 1,234 and <|end|>\t.\n\n  THE quick Brown fox's 2nd \u00e9 e\u0301\n"
"""A page on which tokenizers are compared."""


def kept_case(case):
    """A case, of which llama.cpp knows every constant: Gemma's queries are divided by √head."""
    kept = GOLDEN[case]
    scalar = {"query_pre_attn_scalar": kept["config"].get("head_dim")}
    changed = scalar if "query_pre_attn_scalar" in kept["config"] else {}
    return kept | {"config": kept["config"] | changed}


def exported(folder, kept, dtype, kind="gpt-2"):
    """The model of a case's folder, its config.json, and the GGUF file that is made of it."""
    path = write(folder / "m", kept["config"], kept["shapes"])
    bpe(kind).save(str(path / "tokenizer.json"))
    source = pretrained.describe(f"hf:{path}")
    lm, out = source.load(), folder / "m.gguf"
    told = tokenizer_words(lm.tokenizer, lm.model.embed.num_embeddings, kept["config"])
    metadata = {f"tokenizer.ggml.{key}": Value(value) for key, value in told.items()}
    metadata = gguf.described(lm.model, source.family, metadata)
    gguf.write(out, lm.model, source.family, metadata, dtype)
    return lm, out
