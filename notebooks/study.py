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
# # From a text to a verdict
#
# You have a text and a question: is DyT, which takes no sum, worse than RMSNorm? You will cut the text into splits,
# find each norm's learning rate by a rule, train three seeds, and end with a table for a paper and a sentence that
# says what was decided. About three minutes on a laptop.

# %%
NORMS, RATES, SEEDS, STEPS = ("rmsnorm", "dyt"), (4e-3, 1.6e-2), (0, 1, 2), 100

# %%
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from IPython.display import Markdown

from normlab.config import build
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.plots import loss_figure, series
from normlab.progress import console
from normlab.results import methods
from normlab.results.formats import grid
from normlab.training.config import TrainConfig
from normlab.training.trainer import train
from normlab.training.tuning import Tuned, grown

# %matplotlib inline
console.quiet = True  # no progress bars on this page
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A text
#
# Any text will do: files of txt, jsonl, csv or parquet. Here it is the reference manual that Python brings along, a
# file for each topic. Documents are cut into train, valid and test by their hash, the same on every machine.

# %%
text = folder / "manual"
text.mkdir()
for name, words in topics.items():
    (text / f"topic-{name.replace('/', '-')}.txt").write_text(words, encoding="utf-8")
print(f"{len(topics)} files, {sum(map(len, topics.values())):,} characters")


# %% [markdown]
# ## A rule for the rate
#
# One rate for both would compare a norm at its best with another at its worst. So each norm gets a grid, which grows
# while its best rate stands at an edge. A rate is judged by validation loss, as a mean over seeds. On the command
# line this is one call,
#
# ```
# python -m train tune norm=rmsnorm,dyt optimizer.lr=4e-3,1.6e-2 seed=0,1,2 data=text data.path=manual runs=runs/study
# ```
#
# A run's directory is named by a hash of its config. A run that is there is not run again, and one that was killed
# resumes bit-exactly. One that diverges is a result, not an error.


# %%
def run(norm, rate, seed):
    values = {
        "model": {"layers": 2, "width": 64, "heads": 2, "max_length": 64},
        "norm": {"type": norm},
        "data": {"corpus": "text", "path": str(text), "split": "80/10/10", "vocab_size": 512},
        "optimizer": {"lr": rate},
        "steps": STEPS,
        "window": 64,
        "eval_every": STEPS // 2,
        "eval_windows": 64,
        "seed": seed,
        "runs": str(folder / "runs"),
    }
    return train(build(TrainConfig, values))


runs = []


def loss(norm, rate):
    made = [run(norm, rate, seed) for seed in SEEDS]
    runs.extend(made)
    return sum(r.record.get("best_valid_loss") or float("inf") for r in made) / len(made)


tuned = [Tuned(norm, grown(lambda rate, norm=norm: loss(norm, rate), RATES)) for norm in NORMS]
lines = [["norm", "rate", "validation loss", "best"]]
for t in tuned:
    lines += [
        [t.method, f"{rate:g}", f"{found:.3f}", "best" * (rate == t.best)]
        for rate, found in sorted(t.losses.items())
    ]
Markdown(grid(lines))

# %%
loss_figure(series(runs))

# %% [markdown]
# ## The table and the verdict
#
# Only now is the test split read. `compare_to` names the baseline. The difference is paired by seed, with its
# interval; p is corrected for all methods of the table. The last column is the smallest difference that so many seeds
# would show: what is smaller stays open.

# %%
out = str(folder / "out")
records = evaluate(EvaluateConfig(runs=str(folder / "runs"), precision=("fp32",), out=out))
(found,) = methods.methods(records, "rmsnorm-pre")
Markdown(f"{methods.sentences(found)}\n\n{grid(methods.lines(found))}")

# %% [markdown]
# The verdict is: open. Three seeds of runs this short would show only a difference as large as the last column says.
# What it does not say either: these are models of 0.1 million parameters. Another size, another text or a longer
# training may turn the sign.
#
# The same for LaTeX:

# %%
print(methods.booktabs([found]))

# %% [markdown]
# On the command line `python -m evaluate runs=runs/study compare_to=rmsnorm-pre out=results/study` writes it all:
# `methods.md`, `methods.tex`, `methods.csv`, each run by itself in `table.csv`, and each record with all that it
# depends on. [The tutorial](../docs/tutorial/norm-study.md) does it with a norm of your own.
