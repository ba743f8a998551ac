"""A model that PyTorch's FP16 ruins, and the exported one that it does not: perplexities.

    pip install -c constraints.txt -e '.[parity]'
    python benchmarks/half_proof.py                           SmolLM2-135M, its stream times 8
    python benchmarks/half_proof.py gemma3-270m --enlarge 1   Gemma 3 as it is

Everything is computed by `transformers` on a CPU, with weights and all that is stored in float16
(`dtype=torch.float16`). Four passes over the first windows of WikiText-2's test text:

- float32: the model whose stream was enlarged by a power of two, which changes no bit of it;
- float16: the same;
- fixed: after `evaluate plan` and `evaluate export` with rescale:auto, reloaded in float16;
- scaled: the same, with the norms' sums too in real FP16, by the exported scales.json.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from outcome import keep

from normlab.data import DataConfig, load_corpus
from normlab.evaluation.protocols import protocols
from normlab.pretrained import describe

RULE = "random_tokens.pow2"


def evaluate(*arguments: str) -> None:
    """`python -m evaluate …`, its output on this terminal."""
    print(f"$ python -m evaluate {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "evaluate", *arguments], check=True)


def perplexity(folder: Path, dtype: str, windows: Any, scales: bool = False) -> tuple[float, str]:
    """Of a folder in PyTorch, and the first module whose output is not finite."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()
    if scales:
        from normlab.pretrained.export.apply_scales import apply

        apply(model, folder / "scales.json")
    lost: list[str] = []

    def look(name: str, out: Any) -> None:
        first = out[0] if isinstance(out, tuple) else out
        if isinstance(first, torch.Tensor) and not torch.isfinite(first).all():
            lost.append(name)

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, out, name=name: look(name, out))
    total = 0.0
    for i in range(len(windows)):
        tokens = torch.from_numpy(np.asarray(windows.inputs[i : i + 1], np.int64))
        with torch.inference_mode():
            logits = model(tokens, use_cache=False).logits[0].float()
        targets = torch.from_numpy(np.asarray(windows.targets[i], np.int64))
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none").numpy()
        total += float(nll[windows.scored[i]].sum(dtype=np.float64))
    mean = total / int(windows.counts.sum())
    return math.exp(mean) if math.isfinite(mean) else mean, lost[0] if lost else ""


def prove(model: str, enlarge: float, count: int, window: int, out: Path) -> list[dict[str, Any]]:
    """The four perplexities, and what was kept in float32."""
    ruined, fixed = out / "enlarged", out / "fixed"
    text = [f"max_windows={count}", f"window={window}"]
    evaluate("export", f"pretrained={model}", f"transform=rescale:{enlarge:g}", f"out={ruined}")
    source = f"pretrained=hf:{ruined}"
    column = f"precision=[fp16+{RULE}]"
    evaluate("plan", source, column, "transform=[rescale:auto]", f"out={out / 'plan'}", *text)
    (plan,) = json.loads((out / "plan" / "plan.json").read_text())
    kept = plan["keep_fp32"]
    keeping = [f"keep_fp32=[{','.join(kept)}]"] if kept else []
    evaluate("export", source, "transform=rescale:auto", f"rule={RULE}", f"out={fixed}", *keeping)
    corpus, tokenizer = load_corpus(DataConfig(corpus="auto-raw")), describe(model).tokenizer()
    windows = protocols["window"].windows(corpus.text("test"), tokenizer, window, count)
    rows = []
    for name, folder, dtype, scaled in (
        ("float32", ruined, "float32", False),
        ("float16", ruined, "float16", False),
        ("fixed, float16", fixed, "float16", False),
        ("fixed, norms' sums in float16 too", fixed, "float16", True),
    ):
        value, lost = perplexity(folder, dtype, windows, scaled)
        rows.append({"pass": name, "perplexity": value, "first_not_finite": lost})
    exact = rows[0]["perplexity"]
    for row in rows:
        row["share"] = row["perplexity"] / exact - 1
    return [*rows, {"keep_fp32": kept, "tokens": int(windows.counts.sum())}]


def main() -> None:
    """Print the table; `--keep FILE` writes it as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--enlarge", type=float, default=8.0, help="a power of two")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("results/half-proof"))
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    out = asked.out / f"{Path(asked.model).name}-{asked.enlarge:g}"
    *rows, told = prove(asked.model, asked.enlarge, asked.windows, asked.window, out)
    print(f"\n{asked.model}, stream × {asked.enlarge:g}, {told['tokens']:,} tokens scored")
    for row in rows:
        lost = row["first_not_finite"]
        first = f"   first not finite: {lost}" if lost else ""
        print(f"{row['pass']:36} {row['perplexity']:10.4f} {100 * row['share']:+9.4f} %{first}")
    keep({"model": asked.model, "enlarge": asked.enlarge, "rows": rows} | told, asked.keep)


if __name__ == "__main__":
    main()
