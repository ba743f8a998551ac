"""Small checkpoints with enlarged weights, and what `transformers` makes of them in half precision.

`python -m tests.support.half_models` writes the golden values beside this file; it needs PyTorch
and transformers (`make parity` installs both), on a CPU.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tests.support.small_checkpoints import CONFIGS, LAYERS, VOCAB, tensors, write_folder

GOLDEN = Path(__file__).with_name("half_golden.json")
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (1, 12))
STREAM = "blocks.0.attention.stream"
EACH = {STREAM: 3, "logits": 26}
"""Golden tensors, and of their columns which are kept: each so-manyeth."""

CASES: dict[str, tuple[str, dict[str, float]]] = {
    "llama": ("llama", {"1.mlp.down_proj": 30.0}),
    "llama stream": ("llama", {"0.mlp.down_proj": 3e4}),
    "llama products": ("llama", {"1.self_attn.q_proj": 300.0, "1.self_attn.k_proj": 300.0}),
    "llama hidden": ("llama", {"1.mlp.gate_proj": 300.0, "1.mlp.up_proj": 300.0}),
    "gemma3": ("gemma3", {"0.post_feedforward_layernorm": 300.0}),
    "gemma3 stream": ("gemma3", {"post_feedforward_layernorm": 5e4}),
    "gemma3 branch": ("gemma3", {"1.self_attn.o_proj": 2e5}),
    "gpt2": ("gpt2", {"1.mlp.c_proj": 30.0}),
    "gpt2 logits": ("gpt2", {"ln_f.weight": 1e5}),
    "gpt2 products": ("gpt2", {"0.attn.c_attn": 200.0}),
}
"""By name the family, and what the weights are multiplied by whose names hold a text."""


def write(case: str, folder: Path) -> str:
    """The checkpoint of a case; its spec. Norms' parameters are in 16 bits, as published ones."""
    family, enlarged = CASES[case]
    weights = tensors(family)
    for name, weight in weights.items():
        factors = [factor for part, factor in enlarged.items() if part in name]
        weights[name] = weight * np.float32(math.prod(factors))
        if weight.ndim == 1 and "proj" not in name and "attn.c" not in name and "mlp.c" not in name:
            weights[name] = weights[name].astype(ml_dtypes.bfloat16).astype(np.float32)
    return write_folder(folder, CONFIGS[family], weights)


def theirs(folder: Path, format: str) -> dict[str, Any]:
    """The first tensor with an element that is no number, by our name for it, and two tensors.

    Read with its `dtype`: `model.half()` afterwards would round the rotary frequencies as well.
    """
    import torch
    from transformers import AutoModelForCausalLM

    held = {"fp16": torch.float16, "bf16": torch.bfloat16}[format]
    asked = {"attn_implementation": "eager", "dtype": held}
    model = AutoModelForCausalLM.from_pretrained(folder, **asked).eval()
    seen: dict[str, Any] = {}
    named = dict(model.named_modules())
    for theirs, (before, after) in _names(named).items():
        module = named[theirs]
        if before:
            module.register_forward_pre_hook(lambda _, x, n=before: _look(seen, n, x[0]))
        if after:
            module.register_forward_hook(lambda _, x, y, n=after: _look(seen, n, y))
    with torch.no_grad(), _of_attention(seen):
        logits = model(torch.tensor(TOKENS)).logits
    first = next((name for name, x in seen.items() if not np.isfinite(x).all()), None)
    return {"first": first, STREAM: seen[STREAM], "logits": logits.float().numpy()[0]}


def _look(seen: dict[str, Any], name: str, made: Any) -> None:
    """Keep a tensor, in the order of the pass."""
    tensor = made[0] if isinstance(made, tuple) else made
    seen.setdefault(name, tensor.float().numpy()[0].copy())


def _of_attention(seen: dict[str, Any]) -> Any:
    """Within it each block's QKᵀ and softmax are looked at, which no module gives."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Within(TorchFunctionMode):
        products = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore
            made = function(*args, **(kwargs or {}))
            if function is torch.matmul:
                self.products += 1
                if self.products % 2:
                    _look(seen, f"blocks.{self.products // 2}.attention.products", made)
            elif function is torch.nn.functional.softmax:
                _look(seen, f"blocks.{self.products // 2}.attention.probabilities", made)
            return made

    return Within()


_IN_BLOCK = {  # module: what goes in, what comes out
    "self_attn.q_proj": ("", ".attention.query"),
    "self_attn.k_proj": ("", ".attention.key"),
    "self_attn.v_proj": ("", ".attention.value"),
    "attn.c_attn": ("", ".attention.query"),
    "self_attn.o_proj": (".attention.heads", ".attention.out"),
    "attn.c_proj": (".attention.heads", ".attention.out"),
    "mlp.gate_proj": ("", ".mlp.gate"),
    "mlp.c_fc": ("", ".mlp.gate"),
    "mlp.up_proj": ("", ".mlp.up"),
    "mlp.down_proj": (".mlp.hidden", ".mlp.out"),
    "mlp.c_proj": (".mlp.hidden", ".mlp.out"),
    "input_layernorm": ("", ".attention.norm_in"),
    "ln_1": ("", ".attention.norm_in"),
    "pre_feedforward_layernorm": (".attention.stream", ".mlp.norm_in"),
    "post_feedforward_layernorm": ("", ".mlp.norm_out"),
    "ln_2": (".attention.stream", ".mlp.norm_in"),
    "": ("", ".mlp.stream"),
}
_OUTSIDE = {
    "model.embed_tokens": ("", "embed"),
    "transformer.drop": ("", "embed"),
    "model.norm": ("", "norm_final"),
    "transformer.ln_f": ("", "norm_final"),
    "lm_head": ("", "logits"),
}


def _names(modules: dict[str, Any]) -> dict[str, tuple[str, str]]:
    found = {name: names for name, names in _OUTSIDE.items() if name in modules}
    peri = any(name.endswith("pre_feedforward_layernorm") for name in modules)
    after = ("", ".attention.norm_out") if peri else (".attention.stream", ".mlp.norm_in")
    for i in range(LAYERS):
        block = next(b for b in (f"model.layers.{i}", f"transformer.h.{i}") if b in modules)
        for part, names in {**_IN_BLOCK, "post_attention_layernorm": after}.items():
            name = f"{block}.{part}".rstrip(".")
            if name in modules:
                found[name] = tuple(n and f"blocks.{i}{n}" for n in names)  # type: ignore
    return found


def main() -> None:
    """Write the golden values."""
    made: dict[str, Any] = {}
    for case in CASES:
        for format in ("fp16", "bf16"):
            with tempfile.TemporaryDirectory() as folder:
                write(case, Path(folder))
                found = theirs(Path(folder), format)
            for name in (STREAM, "logits"):
                finite = np.isfinite(found[name]).all()
                found[name] = found[name][:, :: EACH[name]].tolist() if finite else None
            made[f"{case}, {format}"] = found
            print(case, format, found["first"])
    GOLDEN.write_text(json.dumps(made) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
