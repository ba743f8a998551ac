"""What a 7B model costs: memory of loading it, seconds a window in the paper's three precisions.

    python benchmarks/large_model.py --layers 32                 # Llama-2-7b's shape: an 80 GB GPU
    python benchmarks/large_model.py --layers 2 --window 512     # a small machine: full width
    python benchmarks/large_model.py --layers 4 --window 512     # the difference is two blocks
    python benchmarks/large_model.py --stream --windows 2 --window 512    # all, on a small machine

Random float16 weights in a Hugging Face directory of that shape, a file a block, written by a
process of its own and read by `normlab.pretrained`. Then windows of random tokens are scored in
fp32, fp16 and fp16+slanc by the loop of `python -m evaluate`, each once more after the call that
compiles. Memory is what this process ever held on the host, over what it held before. With
`--stream` layers are read from disk one at a time, and each precision is scored once.
"""

import argparse
import json
import math
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from evaluation_speed import windows
from outcome import keep

from normlab import pretrained
from normlab.evaluation.perplexity import score
from normlab.results.column import Column
from normlab.scaling import scales

CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False,
}  # fmt: skip
"""Llama-2-7b's (Touvron et al. 2023, arXiv:2307.09288)."""
PRECISIONS = ["fp32", "fp16", "fp16+slanc"]
PLACES = 2**20
"""So many places there are for a weight to begin in."""
WINDOWS = 341_469 // 2048
"""Windows of 2,048 tokens in WikiText-2's raw test split as Llama-2's tokenizer cuts it."""


def shapes(config: dict[str, Any]) -> Iterator[dict[str, tuple[int, ...]]]:
    """The weights of one file after another, by Hugging Face's names."""
    d, m, v = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    ends = {"model.embed_tokens.weight": (v, d), "lm_head.weight": (v, d)}
    yield {**ends, "model.norm.weight": (d,)}
    for i in range(config["num_hidden_layers"]):
        square = {f"self_attn.{part}_proj": (d, d) for part in "qkvo"}
        mlp = {"mlp.gate_proj": (m, d), "mlp.up_proj": (m, d), "mlp.down_proj": (d, m)}
        norms = {"input_layernorm": (d,), "post_attention_layernorm": (d,)}
        parts = {**square, **mlp, **norms}
        yield {f"model.layers.{i}.{name}.weight": shape for name, shape in parts.items()}


def write(folder: Path, config: dict[str, Any]) -> None:
    """A directory of random weights: normal with variance 1/d, norm weights 1.

    All are cut out of one row of random numbers, each from a place of its own.
    """
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models

    rng, files = np.random.default_rng(0), {}
    std = np.float32(config["hidden_size"] ** -0.5)
    most = max(math.prod(shape) for named in shapes(config) for shape in named.values())
    numbers = (std * rng.standard_normal(most + PLACES, np.float32)).astype(np.float16)
    for i, named in enumerate(shapes(config)):
        starts = rng.integers(0, PLACES, len(named))
        weights = {
            name: np.ones(shape, np.float16)
            if name.endswith("norm.weight")
            else numbers[start : start + math.prod(shape)].reshape(shape)
            for start, (name, shape) in zip(starts, named.items(), strict=True)
        }
        save_file(weights, folder / f"model-{i}.safetensors")
        files |= dict.fromkeys(named, f"model-{i}.safetensors")
    index = json.dumps({"weight_map": files})
    (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps(config))
    words = {str(i): i for i in range(config["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
    (folder / "tokenizer.json").write_text(tokenizer.to_str())


def held() -> int:
    """The most bytes that this process has held on the host."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(folder: Path, config: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    """Load the directory, score windows in each precision."""
    before, began = held(), time.perf_counter()
    model = pretrained.describe(f"hf:{folder}").load(stream=asked.stream).model
    found = {"load_seconds": time.perf_counter() - began, "load_bytes": held() - before}
    sizes = [4 * leaf.size for leaf in jax.tree.leaves(model)]
    found |= {"weights_bytes": sum(sizes), "largest_tensor_bytes": max(sizes)}
    began = time.perf_counter()
    rules = {rule for name in asked.precisions if (rule := Column.parse(name).rule)}
    given = {rule: jax.block_until_ready(scales(model, rule)) for rule in rules}
    found["scales_seconds"] = time.perf_counter() - began
    text, seconds = windows(asked.windows, asked.window, config["vocab_size"]), {}
    overflowed = {}
    for name in asked.precisions:
        column = Column.parse(name)
        for _ in range(1 if asked.stream else 2):  # the first compiles
            began = time.perf_counter()
            scores = score(
                model, text, column.precision, given.get(column.rule), batch=asked.windows
            )
            seconds[name] = (time.perf_counter() - began) / asked.windows
        overflowed[name] = sum(site.overflowed for site in scores.sites.values())
        print(name, scores.perplexity, seconds[name], held() - before, flush=True)
    found |= {"seconds_a_window": seconds, "evaluation_bytes": held() - before}
    found["overflowed_rows"] = overflowed
    stats = jax.devices()[0].memory_stats() or {}
    return found | {"device_peak_bytes": stats.get("peak_bytes_in_use")}


def main() -> None:
    """Write, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=1, help="scored together")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--stream", action="store_true", help="layers from disk, one at a time")
    parser.add_argument("--divide", type=int, default=1, help="width, hidden and heads, by this")
    parser.add_argument("--out", type=Path, help="a JSON file")
    asked = parser.parse_args()
    wide = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    config = CONFIG | {k: CONFIG[k] // asked.divide for k in wide}
    config["num_hidden_layers"] = asked.layers
    with tempfile.TemporaryDirectory() as name:
        writer = multiprocessing.get_context("spawn").Process(
            target=write, args=(Path(name), config)
        )
        writer.start()
        writer.join()
        if writer.exitcode:
            raise SystemExit(f"the weights could not be written into {name}: see above")
        result = measure(Path(name), config, asked)
    seconds = sum(result["seconds_a_window"].values())
    minutes = WINDOWS * seconds / 60 if asked.window == 2048 else None
    told = {"stream": asked.stream, "windows": asked.windows, "window": asked.window}
    keep(result | told | {"config": config, "table_minutes": minutes}, asked.out)


if __name__ == "__main__":
    main()
