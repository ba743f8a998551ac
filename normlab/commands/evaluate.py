"""`python -m evaluate [VERB]`: perplexities, and all that verbs are for."""

import importlib
import sys
from collections.abc import Sequence

from normlab.commands import ranges, tables
from normlab.commands.launch import explained, launch, verb
from normlab.evaluation.config import EvaluateConfig
from normlab.parallel.distributed import is_main_process

EXAMPLES = """
python -m evaluate runs=runs                                   the table of all runs in a directory
python -m evaluate run=runs/dyt-peri-HASH precision=[fp32,bf16:sequential,fp8_e5m2+slanc]
python -m evaluate pretrained=smollm2-135m max_windows=20      a pretrained model, fetched by pip
python -m evaluate pretrained=hf:DIR transform=[none,fold]     a folder of safetensors, rewritten
python -m evaluate pretrained=torch:DIR                        any transformers model, by PyTorch
python -m evaluate pretrained=NAME activations=fp16            all that a runtime stores in FP16
python -m evaluate ranges pretrained=NAME                       where it leaves FP16, and the cure
python -m evaluate plan pretrained=NAME budget=0.001            norms that must stay in FP32
python -m evaluate golden datapath=NAME pretrained=NAME out=DIR  vectors for a testbench
python -m evaluate export pretrained=NAME transform=rescale:auto+fold out=DIR  for transformers
python -m evaluate probe MODULE:NAME dtype=bfloat16             which arithmetic a kernel has
python -m evaluate claims                                      papers' claims: which hold here
python -m evaluate list                                        every name there is, with a line
python -m evaluate show OUT ...                                tables of earlier calls again
python -m evaluate figures OUT                                 figures from records, as SVG and PNG
python -m evaluate report OUT runs                             all of it as one page of HTML
"""
OWN = ("claims", "plan", "golden", "export", "probe", "figures", "report")
VERBS = {name: name for name in OWN} | {"list": "listing"}
"""Each verb's module beside this one, read when it is asked for; others are functions."""


def perplexities(config: EvaluateConfig, asked: Sequence[str] = ()) -> None:
    """Evaluate what was asked for, write the tables, print them."""
    from normlab.evaluation import evaluate  # slow to import: help comes first

    records = evaluate(config)
    if is_main_process():
        tables.write(config, records)


def main() -> None:
    """What `python -m evaluate` and `normlab-evaluate` do."""
    asked = verb({"show", "ranges", *VERBS})
    if asked is None:
        launch("evaluate", EvaluateConfig, perplexities, EXAMPLES)
        return
    if asked == "ranges":
        launch("evaluate", EvaluateConfig, ranges.main, ranges.EXAMPLES)
        return
    with explained():
        if asked == "show":
            tables.show(sys.argv[1:] or [EvaluateConfig.out])
        else:
            importlib.import_module(f"normlab.commands.{VERBS[asked]}").main(sys.argv[1:])
