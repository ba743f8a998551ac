# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own norm
#
# You will write a norm in one cell, check it, train it and RMSNorm on three seeds, and print the table, low-precision
# columns included. About two minutes on a laptop.

# %%
STEPS, SEEDS = 120, (0, 1, 2)

# %%
import tempfile
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Markdown

from normlab.config import build, field, require
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.norms import Norm, NormConfig, NormContext, Site, norms
from normlab.progress import console
from normlab.results import spread, tables
from normlab.results.formats import grid, markdown
from normlab.training.config import TrainConfig
from normlab.training.trainer import train

console.quiet = True  # no progress bars on this page

# %% [markdown]
# ## The norm
#
# RMSNorm with the row's *median* taken off first, as LayerNorm takes off the mean: a massive activation
# moves a mean, but not a median. Two things make it a norm that all of normlab knows:
#
# - a frozen dataclass with its settings, each with a default and a description;
# - a registered class. `acc` does the sum, so that whoever runs the model decides in which precision.


# %%
@dataclass(frozen=True)
class MedianNormConfig(NormConfig):
    """What the norm can be told."""

    type: str = field("mediannorm", "norm type, a registered name (set by norm=NAME)")
    eps: float = field(1e-6, "added to the mean square")
    use_weight: bool = field(True, "multiply by a learned weight γ ∈ R^d, initially 1")
    share: float = field(1.0, "how much of the median is taken off")

    def __post_init__(self):
        require(0 <= self.share <= 1, f"norm.share = {self.share}: expected 0 to 1")


@norms.register("mediannorm")
class MedianNorm(Norm):
    """y = γ ⊙ z / sqrt(mean(z²) + ε), z = x - share · median(x)."""

    Config = MedianNormConfig

    def __call__(self, x, context):
        z = x - self.config.share * jnp.median(x, axis=-1, keepdims=True)
        return self.affine(context.acc.normalize(z, self.config.eps), x, context)


# %% [markdown]
# ## Is it right?
#
# Against float64 NumPy, on rows with an outlier; then its gradient against a difference quotient.

# %%
site = Site("norm_in", "blocks.0.mlp.norm_in")
norm = MedianNorm(65, site, MedianNormConfig())
x = np.random.default_rng(0).normal(0.5, 1.0, (4, 65))
x[:, 3] = 50.0
z = x - np.median(x, axis=-1, keepdims=True)
expected = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6)
found = np.asarray(norm(jnp.asarray(x, jnp.float32), NormContext()))
print(f"largest error {np.abs(found - expected).max():.1e}")


def one_output(row):
    return norm(row, NormContext())[0, 5]


row, step = jnp.asarray(np.random.default_rng(1).normal(size=(1, 65)), jnp.float32), 1e-2
slope = (one_output(row.at[0, 7].add(step)) - one_output(row.at[0, 7].add(-step))) / (2 * step)
print(f"gradient {jax.grad(one_output)(row)[0, 7]:.5f}, difference quotient {slope:.5f}")

# %% [markdown]
# A bad setting fails before anything is trained, and says what would do:

# %%
for wrong in ({"share": 2.0}, {"shaer": 0.5}):
    try:
        build(TrainConfig, {"norm": {"type": "mediannorm", **wrong}})
    except (ValueError, KeyError) as error:
        print(error)

# %% [markdown]
# ## Train it
#
# The norm is one line of config, as every registered one is. The text is `embedded`, which Python itself
# ships; say `"auto"` for WikiText-2 where it can be had.

# %%
folder = tempfile.mkdtemp()


def run(norm, seed):
    values = {
        "model": {"layers": 2, "width": 64, "heads": 2, "max_length": 64},
        "norm": {"type": norm},
        "data": {"corpus": "embedded", "vocab_size": 512},
        "optimizer": {"lr": 3e-3, "warmup": 10},
        "steps": STEPS,
        "window": 64,
        "eval_every": STEPS // 2,
        "eval_windows": 16,
        "seed": seed,
        "runs": folder,
    }
    return train(build(TrainConfig, values))


runs = [run(norm, seed) for norm in ("rmsnorm", "mediannorm") for seed in SEEDS]
[(r.record["norm"], r.record["seed"], round(r.record["best_valid_perplexity"], 2)) for r in runs]

# %% [markdown]
# ## The table
#
# Every run is a row; every precision a column, for the accumulator did the sum.

# %%
PRECISIONS = ("fp32", "fp16:sequential", "bf16:sequential", "fp8_e5m2:pairwise")
records = evaluate(EvaluateConfig(runs=folder, precision=PRECISIONS, out=f"{folder}/out"))
Markdown(markdown(tables(records, list(PRECISIONS))))

# %% [markdown]
# And over seeds: mean ± standard deviation, and whether the difference to the best is one.

# %%
Markdown(
    "\n\n".join(
        f"{title}\n\n{grid(lines)}" for title, lines in spread.spreads(records, list(PRECISIONS))
    )
)

# %% [markdown]
# To keep it: move the two classes into a file, and `python -m train imports=[my_norms.py] norm=mediannorm` knows it.
# In `normlab/norms/` the tests that walk the registry also ask for its method card (`card`) and its `reference` in
# float64.
