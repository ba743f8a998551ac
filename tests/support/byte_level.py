"""Byte-level tokenizers with merges, each cut as a family of the hub cuts a text."""

from tests.support.small_checkpoints import letters

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def bpe(kind, merges=7):
    """A tokenizer as the hub has it, with merges and two tokens that are found before all else."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre
    from tokenizers.processors import TemplateProcessing

    pairs = [("Ġ", "t"), ("t", "h"), ("1", "2"), ("Ġt", "h"), ("T", "H"), ("e", "d"), ("Ã", "©")]
    pairs = pairs[:merges]
    tokens = [*letters(), *("".join(pair) for pair in pairs)]
    if kind == "llama-bpe":
        tokens.append("Ġquick")  # no merge makes it: it is a whole word
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=kind == "llama-bpe"))
    level = pre.ByteLevel(add_prefix_space=False, use_regex=kind in ("gpt-2", "smollm"))
    cut = Regex(_SPLIT.replace("DIGITS", "" if kind == "qwen2" else "{1,3}"))
    first = [pre.Digits(individual_digits=True)] if kind == "smollm" else []
    first += [pre.Split(cut, "isolated")] if kind in ("llama-bpe", "dbrx", "qwen2") else []
    made.pre_tokenizer = pre.Sequence([*first, level]) if first else level
    if kind == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", special=True)])
    made.add_tokens([AddedToken("THE", normalized=False)])
    if kind == "llama-bpe":
        end = made.token_to_id("<|end|>")
        made.post_processor = TemplateProcessing("<|end|> $A", None, [("<|end|>", end)])
    return made
