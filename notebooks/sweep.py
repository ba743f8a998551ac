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
# # Reading a sweep
#
# You will run a small sweep (two norms, three learning rates, two seeds), see whether any diverged, and draw loss
# against learning rate. Then you make the table for a paper: each norm at its best rate, mean ± spread over seeds,
# and whether the difference is one. About two minutes on a laptop.

# %%
STEPS = 80
NORMS, RATES, SEEDS = ("rmsnorm", "dyt"), (1e-3, 1e-2, 1e-1), (0, 1)

# %%
import tempfile
from itertools import product

from IPython.display import Markdown

from normlab.config import build
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.plots import loss_figure, series
from normlab.progress import console
from normlab.results import spread, tables
from normlab.results.formats import grid, latex
from normlab.training.config import TrainConfig
from normlab.training.trainer import train

# %matplotlib inline
console.quiet = True  # no progress bars on this page
folder = tempfile.mkdtemp()

# %% [markdown]
# ## Run it
#
# On the command line this is one line,
#
# ```
# python -m train -m norm=rmsnorm,dyt optimizer.lr=1e-3,1e-2,1e-1 seed=0,1 runs=runs/sweep
# ```
#
# and here three loops. A run's directory is named by a hash of its config. A run that is there is not run again, and
# one that was killed resumes bit-exactly. One that diverges is a result, not an error.


# %%
def run(norm, rate, seed):
    values = {
        "model": {"layers": 2, "width": 64, "heads": 2, "max_length": 64},
        "norm": {"type": norm},
        "data": {"corpus": "embedded", "vocab_size": 512},
        "optimizer": {"lr": rate, "warmup": 8},
        "steps": STEPS,
        "window": 64,
        "eval_every": STEPS // 2,
        "eval_windows": 16,
        "seed": seed,
        "runs": folder,
    }
    return train(build(TrainConfig, values))


runs = [run(*point) for point in product(NORMS, RATES, SEEDS)]
lines = [
    "| norm | learning rate | seed | state | best validation perplexity |",
    "|---|---|---|---|---|",
]
for (norm, rate, seed), r in zip(product(NORMS, RATES, SEEDS), runs, strict=True):
    best = r.record.get("best_valid_perplexity")
    lines.append(f"| {norm} | {rate:g} | {seed} | {r.record['state']} | {best:.1f} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## Loss against learning rate
#
# One rate for all would compare a norm at its best with another at its worst. So look at each over the rates first: is
# the best one inside the range that was tried, or at its edge?

# %%
loss_figure(series(runs))

# %% [markdown]
# ## The table
#
# The rate is chosen on validation text, the number is of test text. ± is the standard deviation over seeds; p is
# Welch's test against the best row. With two seeds it can say very little: a paper wants more.

# %%
PRECISIONS = ["fp32", "fp16:sequential"]
out = f"{folder}/out"
records = evaluate(EvaluateConfig(runs=folder, precision=tuple(PRECISIONS), out=out))
Markdown(
    "\n\n".join(f"{title}\n\n{grid(lines)}" for title, lines in spread.spreads(records, PRECISIONS))
)

# %% [markdown]
# Every run by itself, as LaTeX:

# %%
print(latex(tables(records, PRECISIONS)))

# %% [markdown]
# The same from the command line: `python -m evaluate runs=runs/sweep` writes `table.md`, `table.csv`, `table.tex`,
# `spread.md`, and each record with all that it depends on.
