"""`python -m evaluate ranges`: where a model leaves FP16, tensor by tensor, and the cure."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from normlab.config import require
from normlab.evaluation.config import EvaluateConfig
from normlab.progress import console
from normlab.results.column import Column
from normlab.results.formats import ruled
from normlab.results.range_report import RangeReport, answer, legend, lines, report

EXAMPLES = """
python -m evaluate ranges pretrained=smollm2-135m              where it leaves FP16, and the cure
python -m evaluate ranges run=runs/dyt-peri-HASH precision=[bf16]    against another format
"""


def main(config: EvaluateConfig, asked: object = ()) -> None:
    """Print and write the report of every model that was asked for."""
    from normlab.evaluation.evaluator import Evaluator  # slow to import: help comes first
    from normlab.evaluation.targets import targets
    from normlab.evaluation.tensor_ranges import WINDOWS, tensor_ranges
    from normlab.evaluation.texts import Texts
    from normlab.results.record import OK

    config = dataclasses.replace(config, max_windows=config.max_windows or WINDOWS)
    columns = [Column.parse(text) for text in config.precision]
    formats = [c.precision.format for c in columns if not c.precision.format.is_float32]
    require(not config.stream, "stream = True: ranges runs the whole model; expected stream=false")
    require(bool(formats), f"precision = {list(config.precision)}: expected one that is narrower")
    texts, found = Texts(), list[RangeReport]()
    for target in targets(config):
        evaluator = Evaluator(config, target, texts)
        if evaluator.status != OK:
            console.print(f"{target.name}: {evaluator.status}")
            continue
        found.append(tensor_ranges(evaluator.lm, evaluator.windows, str(formats[0])))
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(report(one) for one in found)
    (out / "ranges.md").write_text(text + "\n", encoding="utf-8")
    told = [dataclasses.asdict(one) for one in found]
    (out / "ranges.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for one in found if console.is_terminal else ():
        console.print(ruled(f"{answer(one)}\n", lines(one), 1), Text(legend(one), "dim"))
    print("" if console.is_terminal else f"{text}\n")
    written = ["ranges.md", "ranges.json", *_figures(found, out)]
    print(f"written to {out}: {', '.join(written)}")


def _figures(found: Sequence[RangeReport], out: Path) -> list[str]:
    """The names of a figure for each report; none without matplotlib, which is said."""
    from normlab.plots import ranges_figure, save
    from normlab.plots.records import slug

    try:
        drawn = [save(ranges_figure(one), out / f"ranges-{slug(one.model)}") for one in found]
    except ImportError as error:
        console.print(str(error))
        return []
    return [path.name for pair in drawn for path in pair]
