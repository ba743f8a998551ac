"""`python -m evaluate plan`: the fewest norms that must stay in float32."""

import json
from collections.abc import Sequence
from pathlib import Path

from normlab.commands.launch import launch
from normlab.config import require
from normlab.evaluation.plan import PlanConfig
from normlab.progress import console
from normlab.results import plan

EXAMPLES = """
python -m evaluate plan pretrained=smollm2-135m                which norms must stay in float32
python -m evaluate plan pretrained=NAME budget=0.01 transform=[none,rescale:0.125]
"""


def one_plan(config: PlanConfig, asked: Sequence[str] = ()) -> None:
    """Search, confirm, print; plan.md and plan.json say the same."""
    from normlab.evaluation.plan import plans  # slow to import: help comes first

    found = plans(config)
    require(bool(found), "no column that was asked for applies to a model: nothing was planned")
    out, text = Path(config.out), plan.report(found)
    (out / "plan.md").write_text(text + "\n", encoding="utf-8")
    told = json.dumps([one.told() for one in found], indent=1)
    (out / "plan.json").write_text(told + "\n", encoding="utf-8")
    console.print(f"{text}\n")
    print(f"written to {out}: plan.md, plan.json, records.jsonl")


def main(arguments: Sequence[str] = ()) -> None:
    """What `python -m evaluate plan` does."""
    launch("plan", PlanConfig, one_plan, EXAMPLES)
