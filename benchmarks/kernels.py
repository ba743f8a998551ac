"""Which arithmetic the norms of other libraries have on this CPU: docs/results/kernels.md.

    pip install torch==2.13.0 transformers onnxruntime onnx
    python benchmarks/kernels.py                       # every kernel that can be imported
    python benchmarks/kernels.py --only llama --d 576  # some of them

Each kernel is probed as by `python -m evaluate probe`. What can't be imported is left out and said
so. Results are kept in OUT/kernels.json as they come; a second call probes what is missing.
"""

import argparse
import importlib.metadata
import json
import platform
import textwrap
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from normlab.commands import compile_cache
from normlab.probe import Kernel, probe
from normlab.probe.adapters import load
from normlab.probe.report import notes, smallest, stages, verdict

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "kernels.md"
HF = "transformers.models.{0}.modeling_{0}:{1}"


class Entry(NamedTuple):
    """One kernel: what the page calls it, its name, its packages, compiled or not, dtypes."""

    title: str
    name: str
    packages: tuple[str, ...]
    dtypes: tuple[str, ...]
    compiled: bool = False


ALL, HALVES, TWO = ("bf16", "fp16", "fp32"), ("bf16", "fp16"), ("bf16", "fp32")
TORCH, ONNX = ("torch",), ("onnxruntime",)
MODELS = ("transformers", "torch")
ENTRIES = (
    Entry("PyTorch rms_norm", "torch.nn.functional:rms_norm", TORCH, ALL),
    Entry("Llama", HF.format("llama", "LlamaRMSNorm"), MODELS, HALVES),
    Entry("Gemma 3", HF.format("gemma3", "Gemma3RMSNorm"), MODELS, HALVES),
    Entry("OLMo 2", HF.format("olmo2", "Olmo2RMSNorm"), MODELS, ("bf16",)),
    Entry("T5", HF.format("t5", "T5LayerNorm"), MODELS, HALVES),
    Entry("onnxruntime SimplifiedLayerNormalization", "onnxruntime:SimplifiedLayerNormalization",
          ONNX, ("fp16", "fp32")),
    Entry("NumPy RMSNorm", "benchmarks/kernels.py:numpy_rms", ("numpy",), ("fp16", "fp32")),
    Entry("Flax RMSNorm", "flax.nnx:RMSNorm", ("flax", "jaxlib"), ALL),
    Entry("jax.numpy, jitted", "benchmarks/kernels.py:jax_rms", ("jaxlib",), TWO, True),
    Entry("PyTorch rms_norm, compiled", "torch.nn.functional:rms_norm", TORCH, TWO, True),
    Entry("PyTorch layer_norm", "torch.nn.functional:layer_norm", TORCH, ALL),
    Entry("PyTorch layer_norm, compiled", "torch.nn.functional:layer_norm", TORCH, ALL, True),
    Entry("onnxruntime LayerNormalization", "onnxruntime:LayerNormalization", ONNX,
          ("fp16", "fp32")),
    Entry("NumPy LayerNorm", "benchmarks/kernels.py:numpy_layer_norm", ("numpy",), ("fp32",)),
    Entry("Flax LayerNorm", "flax.nnx:LayerNorm", ("flax", "jaxlib"), TWO),
)  # fmt: skip


def numpy_rms(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """As one writes it."""
    mean = np.mean(x * x, axis=-1, keepdims=True, dtype=x.dtype)
    return x / np.sqrt(mean + x.dtype.type(eps)) * weight


def numpy_layer_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """As one writes it."""
    away = x - np.mean(x, axis=-1, keepdims=True)
    return away / np.sqrt(np.var(x, axis=-1, keepdims=True) + x.dtype.type(eps)) * weight


def jax_rms(x, weight, eps):
    """As one writes it."""
    mean = jnp.mean(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(mean + jnp.asarray(eps, x.dtype)) * weight


def instructions() -> str:
    """The widest vectors of this CPU."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    widest = [name for name in ("avx512f", "avx2", "neon", "asimd") if name in flags]
    return f"{platform.machine()}, {widest[0].upper()}" if widest else platform.machine()


def probed(entry: Entry, dtype: str, d: int) -> dict:
    """What is found of one kernel."""
    name = entry.name.replace("benchmarks", str(ROOT / "benchmarks"))
    kernel = Kernel(load(name, entry.compiled), d, dtype, entry.title)
    found = probe(kernel)
    return {
        "kernel": entry.title,
        "name": entry.name,
        "version": ", ".join(f"{p} {importlib.metadata.version(p)}" for p in entry.packages),
        "dtype": dtype,
        "d": d,
        "instructions": instructions(),
        "verdict": verdict(found),
        "exact": found.exact,
        "left": len(found.left),
        "random": str(found.random),
        "adversarial": str(found.adversarial),
        "stages": stages(found),
        "notes": [note.strip() for note in notes(found)],
        "differs": None if found.differs is None else smallest(found.differs, found.predicted),
    }


HEAD = """# Which arithmetic kernels have

{answer}

| kernel | format | sum | mean, root | γ; output | left | rows exact |
| --- | --- | --- | --- | --- | --- | --- |
"""
ANSWER = """
Of {all} probes of norms on this CPU, {exact} end in an arithmetic that is exact on every row
tried; the sum of {trees} of these is a learned tree. The others show the nearest one and its share.
"""
FOOT = """
## What the columns say

- Rows exact: of 192 random and of 192 adversarial rows that the search had not used.
- A narrow output hides orders: PyTorch's compiled rms_norm adds in a tree, as fp32 shows; behind
  bf16 every row is also that of an exact sum.
- Left: datapaths that no row told apart; of these the plainest is shown.
- d = {d}; {instructions}. Stages: [datapaths](../datapath.md). Method: [probe](../probe.md).
{notes}
## Commands and provenance

```
pip install torch==2.13.0 transformers onnxruntime onnx
python benchmarks/kernels.py
```

{versions}
"""
PROVENANCE = """
{versions}. `kernels.json` beside this page has every stage and the smallest row that differs.
On another CPU a kernel may add in another order. Not tried: llama.cpp, of which PyPI has sources
and no build.
"""


def wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines as long as a page's may be."""
    return textwrap.fill(" ".join(text.split()), 118, subsequent_indent=indent)


def cell(values: list[str]) -> str:
    """The plainest of what a stage may be."""
    return values[0].replace("float32", "fp32").replace(", √ rounded first", "")


def page(found: list[dict]) -> str:
    """The table of all that was found."""
    rows, said = [], []
    for f in found:
        stages = f["stages"]
        shares = [f[kind].replace(" of ", "/") for kind in ("random", "adversarial")]
        sums, (_, _, way) = len(stages["sum"]), stages["product"][0].partition(", ")
        rows.append((
            f["kernel"],
            f["dtype"],
            cell(stages["sum"]) + (f", or {sums - 1} others" if sums > 1 else ""),
            f"{cell(stages['mean'])}; {cell(stages['root'])}",
            "; ".join([*filter(None, [way]), cell(stages["weight"]), cell(stages["output"])]),
            str(f["left"]),
            ", ".join(shares),
        ))  # fmt: skip
        _, subnormal, batch, _ = f["notes"]
        if "was the same alone" not in batch:
            said.append(f"- {f['kernel']}, {f['dtype']}: {batch}.")
        if subnormal != "subnormal numbers: kept at the input, kept at the output":
            said.append(f"- {f['kernel']}, {f['dtype']}: {subnormal}.")
        if f["instructions"] != found[0]["instructions"]:
            said.append(f"- {f['kernel']}, {f['dtype']}: on another CPU, {f['instructions']}.")
    exact = [f for f in found if f["exact"]]
    trees = sum("tree:" in f["stages"]["sum"][0] for f in exact)
    versions = ", ".join(dict.fromkeys(v for f in found for v in f["version"].split(", ")))
    answer = ANSWER.format(all=len(found), exact=len(exact), trees=trees)
    foot = FOOT.format(
        d=found[0]["d"],
        instructions=found[0]["instructions"],
        notes="".join(wrapped(line, "  ") + "\n" for line in said),
        versions=wrapped(PROVENANCE.format(versions=versions)),
    )
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return HEAD.format(answer=wrapped(answer)) + table + foot


def main() -> None:
    """Probe what isn't in the file; write it and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", help="kernels whose title, in small letters with _, has this in it"
    )
    parser.add_argument("--d", type=int, default=576)
    parser.add_argument("--out", type=Path, default=PAGE.parent)
    asked = parser.parse_args()
    compile_cache.use()
    file = asked.out / "kernels.json"
    found = json.loads(file.read_text()) if file.exists() else []
    known = {(row["kernel"], row["dtype"]) for row in found}
    for entry in (e for e in ENTRIES if asked.only in e.title.lower().replace(" ", "_")):
        for dtype in (d for d in entry.dtypes if (entry.title, d) not in known):
            try:
                found.append(probed(entry, dtype, asked.d))
            except (ImportError, ValueError) as error:
                print(f"{entry.title}, {dtype}: left out: {error}", flush=True)
                continue
            print(f"{entry.title}, {dtype}: {found[-1]['verdict']}", flush=True)
            file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (asked.out / "kernels.md").write_text(page(found))


if __name__ == "__main__":
    main()
