"""Claims of the tests, and what their runs might have given."""

import yaml

from normlab.config import build
from normlab.evaluation.claims import Claim, Outcome, Trial

TINY = (
    "model=tiny model.layers=1 model.width=16 model.heads=1 data=embedded data.vocab_size=300 "
    "steps=2 optimizer.warmup=1 batch=2 window=16 eval_every=1 eval_windows=2"
)
"""A run of a second or two."""


def fields(**changed):
    """A claim's, as a file has them."""
    own = {
        "name": "mine",
        "source": "nobody",
        "says": "One is lower than the other.",
        "common": TINY,
        "arms": {"a": "norm=rmsnorm", "b": "norm=layernorm"},
        "rates": [1e-3],
        "seeds": [0, 1, 2],
        "expects": "a < b",
        "margin": 0.1,
        "limits": "It says nothing.",
    }
    return own | changed


def written(path, **changed):
    """The same as a file; its path."""
    own = {k: v for k, v in fields(**changed).items() if k != "name"}
    path.write_text(yaml.safe_dump(own, sort_keys=False))
    return str(path)


def claim(**changed):
    """The claim of those fields."""
    return build(Claim, fields(**changed))


def outcome(claim, values):
    """Of each arm and rate the value of each seed, which is its loss too; None: it diverged."""
    trials = [
        Trial(arm, rate, seed, "finished" if value is not None else "diverged", value, value)
        for (arm, rate), row in values.items()
        for seed, value in enumerate(row)
    ]
    return Outcome(claim, tuple(trials), (1000,), 64, "a text", {"seconds": 1})
