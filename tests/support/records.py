"""A result as an evaluation writes it down, for whoever makes tables of results."""

from normlab.results import Record


def record(model="a", precision="fp32", **fields):
    """One record on one text."""
    given = {
        "norm": "rmsnorm", "placement": "pre", "protocol": "window", "protocol_version": 1,
        "window": 64, "dataset_title": "WikiText-2 (raw)", "split": "test", "tokenizer": "bpe-300",
        "tokens_scored": 1234567, "default_order": "pairwise", "perplexity": 5.116,
    }  # fmt: skip
    return Record(key=f"{model}{precision}", model=model, precision=precision, **(given | fields))
