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
# # Placement: variance and gradients over depth
#
# You will train one small transformer with its norms in three places (pre, post, peri) and look inside at the first
# step and at the last. The growth of the residual stream is compared with what can be calculated. About two minutes
# on a laptop.

# %%
STEPS, LAYERS = 100, 6
PLACEMENTS = ("pre", "post", "peri")

# %%
import tempfile

from IPython.display import Markdown

from normlab.config import build
from normlab.plots import depth_figure, gradient_figure, series, training_figure
from normlab.progress import console
from normlab.training.config import TrainConfig
from normlab.training.trainer import train

# %matplotlib inline
console.quiet = True  # no progress bars on this page
folder = tempfile.mkdtemp()

# %% [markdown]
# ## Where the norm sits
#
# | placement | a sublayer | the stream |
# |---|---|---|
# | pre | $x + F(N(x))$ | never normalized: nothing bounds it |
# | post | $N(x + F(x))$ | normalized after each sublayer |
# | peri | $x + N(F(N(x)))$ | grows, but by rows of a known size |
#
# `diagnostics_every` has a run look inside itself at chosen steps; what it saw is in its `diagnostics.jsonl`.


# %%
def run(placement):
    values = {
        "model": {"layers": LAYERS, "width": 64, "heads": 2, "max_length": 64},
        "norm": {"type": "rmsnorm"},
        "placement": {"type": placement},
        "data": {"corpus": "embedded", "vocab_size": 512},
        "optimizer": {"lr": 3e-3, "warmup": STEPS // 10},
        "steps": STEPS,
        "window": 64,
        "eval_every": STEPS,
        "eval_windows": 16,
        "diagnostics_every": STEPS // 5,
        "runs": folder,
    }
    return train(build(TrainConfig, values))


runs = {placement: run(placement) for placement in PLACEMENTS}
{p: round(r.record["best_valid_perplexity"], 1) for p, r in runs.items()}

# %% [markdown]
# ## Before the first step
#
# A norm's output has a mean square of 1 while its weight is 1. So at the start each sublayer of a peri-norm model
# adds exactly that much to the stream's. After $\ell$ blocks it is $2\ell$ more than before, whatever the weights
# (Kim et al. 2025, arXiv:2502.02732). Post-norm keeps 1. Pre-norm depends on the weights.

# %%
lines = [
    "| after block | " + " | ".join(PLACEMENTS) + " | peri, calculated |",
    "|---|---|---|---|---|",
]
streams = {p: [s["mean_square"] for s in r.diagnostics[0]["stream"]] for p, r in runs.items()}
for block in range(LAYERS + 1):
    seen = " | ".join(f"{streams[p][block]:.3f}" for p in PLACEMENTS)
    lines.append(f"| {block} | {seen} | {streams['peri'][0] + 2 * block:.3f} |")
Markdown("\n".join(lines))

# %% [markdown]
# (Not quite $2\ell$: the sublayers' outputs are not orthogonal to the stream.)
#
# ## Over depth, before and after training

# %%
found = series(runs.values())
depth_figure(found)

# %% [markdown]
# ## Gradients by block
#
# Under post-norm the gradient has to pass every norm on its way down; under pre-norm it takes the stream.

# %%
gradient_figure(found)

# %% [markdown]
# ## Over training

# %%
training_figure(found)

# %% [markdown]
# A hundred steps of a model this size show the mechanism, not which placement is better:
# `docs/results` has the sweeps over learning rates and seeds.
