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
# # The whole norm unit: a rounding too many, a table that misleads, a kernel that is identified
#
# You will see three facts on small inputs. A reciprocal root cut to bf16 makes four times the error of one rounding at
# the end. An FP16 column can look restored although the stream doesn't fit. And a kernel's arithmetic can be told from
# its outputs alone. About three minutes on a laptop.

# %%
STEPS, LAYERS = 60, 12
WIDTH, PROBED = 64, 48  # of the model, of the kernel's rows

# %%
import tempfile

import ml_dtypes
import numpy as np
from IPython.display import Markdown

from normlab.config import build
from normlab.data import load_tokens
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.model import Context
from normlab.probe import probe
from normlab.probe.report import report
from normlab.progress import console
from normlab.results import tables
from normlab.results.formats import markdown
from normlab.runs.run import load
from normlab.training.config import TrainConfig
from normlab.training.trainer import train

console.quiet = True  # no progress bars on this page
folder = tempfile.mkdtemp()
values = {
    "model": {"layers": LAYERS, "width": WIDTH, "heads": 2, "max_length": 64},
    "norm": {"type": "rmsnorm"},
    "data": {"corpus": "embedded", "vocab_size": 512},
    "optimizer": {"lr": 3e-3, "warmup": 6},
    "steps": STEPS,
    "window": 64,
    "eval_every": STEPS,
    "eval_windows": 16,
    "runs": folder,
}
config = build(TrainConfig, values)
run = train(config)
model = load(run.directory).model

# %% [markdown]
# ## A reciprocal root in bf16
#
# AMD's IRON had a bf16 RMSNorm that rounded $1/\mathrm{rms}$, the product with it and the product with $\gamma$, each
# to bf16 and each cutting off. Its pull request 139 rounds once, at the end. Both are datapaths (docs/datapath.md). The
# error is the median over tokens of $\|x - x'\|/\|x\|$ after a block, $x$ with norms in float32.

# %%
tokens = np.asarray(load_tokens(config.data).split("valid")[: 8 * 64]).reshape(8, 64)


def streams(precision):
    context = Context(precision, capture=True)
    model(tokens, context)
    return [np.float64(x) for x in context.streams]


exact = streams("fp32")
units = ("iron-bf16-before-139", "iron-bf16", "hf-llama-bf16")
errors = {
    unit: [
        np.median(np.linalg.norm(x - y, axis=-1) / np.linalg.norm(x, axis=-1))
        for x, y in zip(exact, streams(unit), strict=True)
    ]
    for unit in units
}
lines = ["| after block | " + " | ".join(units) + " |", "|---|---|---|---|"]
for block in range(1, LAYERS + 1):
    lines.append(
        f"| {block} | " + " | ".join(f"{errors[unit][block]:.1e}" for unit in units) + " |"
    )
Markdown("\n".join(lines))

# %% [markdown]
# In this small model the error stays as it is after the first blocks. In Gemma-3-270M it grows, from 5.1e-3 after
# block 2 to 13e-3 after block 13 (docs/results/datapaths.md).
#
# ## A model that only seems restored
#
# A stream $2^{20}$ times as large is the same function in float32 (`rescale`: $\varepsilon$ follows). Norms' sums can be
# scaled, so `fp16+random_tokens` looks restored: that column narrows nothing else. `@fp16` rounds all that a
# half-precision runtime stores (docs/howto/fp16.md), and there the stream is infinite.

# %%
PRECISIONS = ("fp32", "fp16+random_tokens", "fp16+random_tokens@fp16")
asked = {"run": str(run.directory), "max_windows": 4, "out": tempfile.mkdtemp()}
records = evaluate(
    EvaluateConfig(precision=PRECISIONS, transform=("none", "rescale:1048576"), **asked)
)
Markdown(markdown(tables(records, list(PRECISIONS))))

# %% [markdown]
# ## A kernel, identified by its outputs
#
# This one sums in float32, one term after another, and rounds $\varepsilon$, the sum with it, the root and the row to
# float16. The probe knows nothing of it but what it returns (docs/probe.md). Had it added $\varepsilon$ in float32, it
# would be no datapath of ours: the probe then says so and shows the smallest row that differs.


# %%
def kernel(x, weight, eps):
    x = x.astype(np.float32)
    total = np.add.accumulate(x * x, axis=-1)[:, -1:]
    held = np.float32(np.float16(eps))
    mean = np.float16(total / np.float32(x.shape[-1]) + held).astype(np.float32)
    rms = np.float16(np.sqrt(mean)).astype(np.float32)
    return (np.float16(x / rms).astype(np.float32) * weight.astype(np.float32)).astype(
        ml_dtypes.bfloat16
    )


print(report(probe(kernel, d=PROBED, dtype="bf16")))
