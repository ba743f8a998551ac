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
# # A first look: one model, one norm, one table
#
# You will train a small transformer and look at what one of its norms adds up. You see that sum leave the range of
# FP16, bring it back, and print the table that normlab is about. About a minute on a laptop.

# %%
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from IPython.display import Markdown

import normlab.runs.run
from normlab.config import build
from normlab.data import load_tokens
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.model import Context
from normlab.numerics import sum_of_squares
from normlab.plots import figure
from normlab.plots.style import BLUE, GREEN, ORANGE
from normlab.progress import console
from normlab.results import tables
from normlab.results.column import Column
from normlab.results.formats import markdown
from normlab.scaling import scales
from normlab.training.config import TrainConfig
from normlab.training.trainer import train

# %matplotlib inline
console.quiet = True  # no progress bars on this page
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Train
#
# A config is a frozen dataclass; what isn't said has its default. `corpus="embedded"` is a text that
# Python itself ships, so that this runs anywhere; say `"auto"` to get WikiText-2 where it can be had.

# %%
config = build(
    TrainConfig,
    {
        "model": {"layers": 2, "width": 64, "heads": 2, "max_length": 64, "init_std": 0.02},
        "norm": {"type": "rmsnorm"},
        "placement": {"type": "pre"},
        "data": {"corpus": "embedded", "vocab_size": 512},
        "optimizer": {"lr": 1e-2, "warmup": 10},
        "steps": 150,
        "window": 64,
        "eval_every": 50,
        "eval_windows": 16,
        "run": str(folder / "rmsnorm-pre"),
    },
)
run = train(config)
{key: run.record[key] for key in ("state", "parameters", "train_loss", "best_valid_perplexity")}

# %% [markdown]
# ## What a norm adds up
#
# RMSNorm divides a row $x \in \mathbb{R}^d$ by $\sqrt{\Sigma x^2 / d + \varepsilon}$. The sum is its
# *statistic*. A forward pass hands out every norm's input when it is asked to.

# %%
model = normlab.runs.run.load(run.directory).model
text = load_tokens(config.data).split("test")
context = Context(capture=True)
model(jnp.asarray(text[: 8 * 64]).reshape(8, 64), context)
rows = {site: np.asarray(x).reshape(-1, x.shape[-1]) for site, x in context.inputs.items()}
{site: x.shape for site, x in rows.items()}

# %% [markdown]
# The site to look at is the final norm: it sees the whole residual stream. In which format can its
# sums be held?

# %%
site = "norm_final"
for precision in ("fp32", "fp16:pairwise", "fp16:sequential"):
    sums = sum_of_squares(rows[site], precision)
    print(f"{precision:16} {int(jnp.isinf(sums).sum()):4} of {len(sums)} sums are infinite")
assert jnp.isinf(sums).any()  # or what follows would be a tale

# %% [markdown]
# FP16 ends at 65,504, and this stream has grown beyond it within 150 steps (a high learning rate on small
# initial weights does that). An infinite sum gives $1/\sqrt{\infty} = 0$: the row silently becomes zero.
#
# ## A static scale
#
# Dividing $x$ by a constant $s$ and $\varepsilon$ by $s^2$ changes nothing in exact arithmetic, and
# brings the sum back into range. SLaNC (arXiv:2410.10553) finds $s$ from the weights alone:

# %%
s = float(scales(model, "slanc")[site])
squares = (rows[site].astype(np.float64) ** 2).sum(-1)
infinite = int(jnp.isinf(sum_of_squares(rows[site] / s, "fp16:pairwise")).sum())
print(f"s = {s:.1f}; the rows' norms: median {np.median(np.sqrt(squares)):.1f}")
print(f"infinite sums after the division: {infinite}")

# %%
made, ((axis,),) = figure(1, 1, (9, 3))
bins = np.arange(-18, 22, 0.5)
axis.hist(np.log2(squares), bins, color=BLUE, label="Σx²")
light = {"facecolor": "white", "edgecolor": GREEN, "hatch": "////"}  # told apart in grey too
axis.hist(np.log2(squares / s**2), bins, label="Σ(x/s)²", **light)
for edge, name in ((-14, "FP16's smallest normal number"), (np.log2(65504), "FP16's largest")):
    axis.axvline(edge, color=ORANGE, linestyle="--")
    axis.annotate(name, (edge + 0.3, 0.95), xycoords=("data", "axes fraction"), va="top")
axis.set(xlabel="log₂ of the sum of squares", ylabel="rows", title=f"{site}, before and after")
axis.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars
made

# %% [markdown]
# ## The table
#
# Perplexity on the test split. Every norm's statistic is accumulated in FP32, in FP16 from left to right, in FP16 by
# pairs, and by pairs with SLaNC's scales. Δ is the difference to FP32, ± its *paired* standard error over windows.

# %%
precisions = ("fp32", "fp16:sequential", "fp16:pairwise", "fp16:pairwise+slanc")
records = evaluate(
    EvaluateConfig(run=str(run.directory), precision=precisions, out=str(folder / "out"))
)
Markdown(markdown(tables(records, [str(Column.parse(p)) for p in precisions])))

# %% [markdown]
# The same from the command line:
#
# ```
# python -m train norm=rmsnorm placement=pre
# python -m evaluate runs=runs precision=[fp32,fp16:sequential,fp16:pairwise,fp16:pairwise+slanc]
# ```
