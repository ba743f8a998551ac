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
# # A tour of norms: what each does to a row
#
# You will put one row through every norm that normlab knows and see why DyT's curve is the one that LayerNorm draws.
# Then FP16 breaks a norm at both ends of its range. Under a minute on a laptop.

# %%
import jax.numpy as jnp
import numpy as np
from IPython.display import Markdown
from scipy.optimize import curve_fit

from normlab.norms import NormContext, Site, norms
from normlab.numerics import Accumulator, sum_of_squares
from normlab.plots import figure
from normlab.plots.style import GREEN, GREY

# %matplotlib inline
d = 256
site = Site("norm_in", "blocks.0.mlp.norm_in")


def fresh(name, **fields):
    """A norm of a registered type with its initial parameters."""
    return norms[name](d, site, norms[name].Config(**fields))


# %% [markdown]
# ## One row, every norm
#
# The row is what a transformer's residual stream looks like: nearly Gaussian, a mean that isn't zero, and one
# element far out (a "massive activation"). A norm is called with the row and a context, whose
# *accumulator* says in which precision its sum is made; without one it is float32.

# %%
random = np.random.default_rng(0)
x = random.normal(0.5, 2.0, d).astype(np.float32)
x[17] = 60.0


def summary(y):
    others = np.delete(y, 17)
    return f"{y.mean():.3f} | {np.sqrt((y**2).mean()):.3f} | {y[17]:.2f} | {others.std():.3f}"


lines = [
    "| norm | mean | RMS | the large element | spread of the others |",
    "|---|---|---|---|---|",
    f"| (the row) | {summary(x)} |",
]
for name in norms:
    if name in ("batchnorm", "bhyt-estimated"):  # they need a batch, and the block around them
        continue
    y = np.asarray(fresh(name)(jnp.asarray(x)[None, None]))[0, 0]
    lines.append(f"| {name} | {summary(y)} |")
Markdown("\n".join(lines))

# %% [markdown]
# A norm that divides by a statistic of the row lets the large element set the size of all others. One that bounds
# each element by itself (DyT, Derf) does not. The integer and approximate forms (`i-bert`, `fast-rsqrt`, …) stand in
# for LayerNorm or RMSNorm: compare their lines.
#
# ## What a change of the row's size does
#
# RMSNorm and LayerNorm don't see it at all: $f(cx) = f(x)$, but for ε. DyT sees it, and saturates.

# %%
sizes = 2.0 ** np.arange(-12, 13)
made, ((axis,),) = figure(1, 1, (8, 3))
PALE = "#B5DCF3"
looks = {  # where curves coincide, the thin one lies on the wide one
    "layernorm": {"color": PALE, "lw": 9},
    "rmsnorm": {"color": GREEN, "lw": 4},
    "dyt": {"color": "black", "lw": 1.5, "ls": "--"},
    "none": {"color": GREY, "lw": 2, "ls": ":"},
}
for name, look in looks.items():
    norm = fresh(name)
    out = [np.sqrt(np.mean(np.square(norm(jnp.asarray(c * x))))) for c in sizes]
    axis.loglog(sizes, out, label=name, base=2, **look)
axis.set(xlabel="c", ylabel="RMS of f(cx)", title="Left, where ε rules; right, where it doesn't")
axis.set_ylim(2**-6, 2**6)
axis.legend()
made

# %% [markdown]
# ## DyT's curve against LayerNorm's
#
# LayerNorm maps each row along a straight line. But rows differ in their spread. Plot inputs against outputs over
# many rows, and the lines fan out into an S. The elements furthest out come from the widest rows, which are divided
# by the most. DyT (arXiv:2503.10622) replaces the fan with one curve, $\gamma\tanh(\alpha x)$. Here is the one that
# fits these points best.

# %%
spreads = random.lognormal(0.0, 1.0, 200)
rows = (random.normal(size=(200, d)) * spreads[:, None]).astype(np.float32)
out = np.asarray(fresh("layernorm")(jnp.asarray(rows)))
(gamma, alpha), _ = curve_fit(lambda x, g, a: g * np.tanh(a * x), rows.ravel(), out.ravel(), (1, 1))
curve = np.linspace(-8, 8, 400)

made, ((axis,),) = figure(1, 1, (8, 4))
axis.scatter(rows[:, ::8], out[:, ::8], s=1, color="#56B4E9", label="LayerNorm, 200 rows")
label = f"DyT: {gamma:.2f} tanh({alpha:.2f} x)"
for look in ({"color": "white", "lw": 6}, {"color": "black", "lw": 2, "label": label}):
    axis.plot(curve, gamma * np.tanh(alpha * curve), **look)
axis.set(xlim=(-8, 8), ylim=(-4, 4), xlabel="an input element", ylabel="its output")
axis.legend(markerscale=6)
made

# %% [markdown]
# ## Why FP16 breaks
#
# The sum of squares of a row of $d$ elements of size $a$ is $da^2$. FP16 holds numbers up to 65,504, and none but
# zero below $2^{-24}$. With $d$ = 256 the sum overflows from $a = 16 = 2^4$ on. Below $a = 2^{-12.5}$ each square is
# rounded to zero before it is added.

# %%
rms = 2.0 ** np.arange(-16, 10, 0.5)
unit = random.normal(size=d)
unit /= np.sqrt((unit**2).mean())
ramp = jnp.asarray(rms[:, None] * unit, jnp.float32)

made, ((axis,),) = figure(1, 1, (8, 3))
looks = {
    "fp32": {"color": PALE, "lw": 9},
    "bf16:pairwise": {"color": GREEN, "lw": 4},
    "fp16:pairwise": {"color": "black", "lw": 1.5},
}
for precision, look in looks.items():
    y = fresh("rmsnorm", eps=1e-12)(ramp, NormContext(Accumulator(precision)))
    size = np.sqrt(np.mean(np.square(y), axis=-1))
    axis.semilogx(rms, size, base=2, label=precision, **look)
axis.set(xlabel="RMS of the row", ylabel="RMS of RMSNorm's output")
axis.set_title("It should be 1 everywhere")
axis.set_ylim(-0.1, 3)
axis.legend()
made

# %% [markdown]
# On the right the sum is infinite and $1/\sqrt{\infty} = 0$: the row is silently erased. On the left the sum is zero
# and ε alone is left to divide by: the row explodes. BF16 has the range, but only 8 bits of precision: add from left
# to right, and a long sum stalls.

# %%
long_rows = jnp.asarray(random.normal(size=(64, 4096)), jnp.float32)
exact = np.square(np.asarray(long_rows, np.float64)).sum(-1)
lines = ["| precision | mean error of Σx² | worst |", "|---|---|---|"]
for precision in ("fp16:pairwise", "fp16:sequential", "bf16:pairwise", "bf16:sequential"):
    error = np.asarray(sum_of_squares(long_rows, precision)) / exact - 1
    lines.append(f"| {precision} | {error.mean():+.2%} | {np.abs(error).max():.2%} |")
Markdown("\n".join(lines))

# %% [markdown]
# Next: `slanc.ipynb` brings a real model's sums back into FP16's range with scales computed from its weights;
# `docs/numerics.md` says which order stands for which machine, `docs/norms.md` has every norm's formula and source.
