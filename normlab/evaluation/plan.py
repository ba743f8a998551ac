"""Plans: the fewest norms that must stay in float32, so that a model keeps its perplexity.

Sites are chosen on validation text and confirmed on the text that is asked for.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from normlab.config import field, require
from normlab.evaluation.config import REFERENCE, EvaluateConfig
from normlab.evaluation.evaluator import Evaluator
from normlab.evaluation.job import of_model, with_numbers
from normlab.evaluation.search import Search
from normlab.evaluation.store import RecordStore
from normlab.evaluation.targets import targets
from normlab.evaluation.texts import Texts
from normlab.pretrained.families import families
from normlab.progress import console
from normlab.results.plan import Plan, Rise
from normlab.results.record import OK
from normlab.transforms import AUTO, NOTHING


@dataclass(frozen=True)
class PlanConfig(EvaluateConfig):
    """What may be lost, and on how much text sites are chosen."""

    precision: tuple[str, ...] = field(
        ("fp16", "fp16+slanc", "fp16+random_tokens"),
        "columns to be planned for, each by itself, as in `python -m evaluate`",
    )
    transform: tuple[str, ...] = field(
        (NOTHING, AUTO), "the model as it is, and rewritten; as in `python -m evaluate`"
    )
    budget: float = field(
        0.001, "how far perplexity may be from that of fp32, as a share of it: 0.001 is 0.1 %"
    )
    search_windows: int = field(
        8, "windows of validation text on which sites are chosen; on a quarter of them each alone"
    )
    max_windows: int | None = field(
        8, "windows of the split on which the choice is confirmed, the first; null: all"
    )
    out: str = field("results/plan", "directory for plan.md, plan.json and records.jsonl")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.budget > 0, f"budget = {self.budget:g}: expected a share > 0, such as 0.001")
        require(
            self.search_windows >= 1,
            f"search_windows = {self.search_windows}: expected a whole number ≥ 1",
        )
        require(
            not self.keep_fp32 and not any(column.keep_fp32 for column in self.columns),
            "keep_fp32: a plan chooses these sites; expected columns without any",
        )
        require(
            any(str(column) != REFERENCE for column in self.columns),
            f"precision = {list(self.precision)}: expected a narrow one, such as fp16",
        )


Measure = Callable[[Collection[str]], Rise]
"""How far a pass is from float32 with some sites kept in it."""


def fewest(
    sites: Sequence[str],
    search: Measure,
    each_alone: Callable[[], dict[str, Rise]],
    budget: float,
) -> tuple[list[str], dict[str, Rise]]:
    """The sites to keep, and how far each leads away by itself; no site where none need stay.

    Greedy: sites in the order of what each does where it alone is narrow; the fewest of the worst
    that hold the budget; of those, groups and then single ones are given back where that holds.
    What sites do alone is added up: a choice that is over the budget by that is not measured.

    Args:
        sites: all of them.
        search: on the text that decides.
        each_alone: how far each site leads away where it alone is narrow.
        budget: how far perplexity may be from that of float32, as a share of it.
    """
    if search(()).within(budget):
        return [], {}
    if not search(sites).within(budget):  # what breaks is no norm
        return list(sites), {}
    harm = each_alone()

    def holds(kept: Collection[str]) -> bool:
        added = sum(harm[site].share for site in sites if site not in kept)
        return abs(added) <= budget and search(kept).within(budget)

    order = sorted(sites, key=lambda site: harm[site].tokens, reverse=True)
    worst = order[: _smallest(holds, order)]
    kept = _given_back(holds, worst, worst)
    return [site for site in sites if site in kept], harm


Holds = Callable[[Collection[str]], bool]
"""Whether the budget is held with some sites kept."""


def _smallest(holds: Holds, order: Sequence[str]) -> int:
    """How many of the first hold the budget, by halving; all of them do, none doesn't."""
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if holds(order[:middle]):
            high = middle
        else:
            low = middle
    return high


def _given_back(holds: Holds, group: Sequence[str], kept: list[str]) -> list[str]:
    """The kept sites without those of a group that can be narrow after all."""
    fewer = [site for site in kept if site not in group]
    if holds(fewer):
        return fewer
    half = len(group) // 2
    for part in (group[half:], group[:half]) if half else ():  # the least harmful first
        kept = _given_back(holds, part, kept)
    return kept


def plans(config: PlanConfig) -> list[Plan]:
    """A plan for each model, transform and narrow column that applies to it."""
    config = replace(config, transform=with_numbers(config).transform)
    found, texts, store = [], Texts(), RecordStore(config)
    on_valid = replace(config, split="valid", max_windows=config.search_windows)
    for target in targets(config):
        evaluator, valid = (Evaluator(c, target, texts) for c in (config, on_valid))
        if evaluator.status != OK:
            console.print(f"{target.name}: {evaluator.status}")
            continue
        for column in config.columns:
            if str(column) != REFERENCE and evaluator.applies(column):
                found.append(_plan(evaluator, Search(valid, column), config.budget, store))
    return found


def _plan(evaluator: Evaluator, search: Search, budget: float, store: RecordStore) -> Plan:
    column = search.column
    kept, harm = fewest(search.sites, search, search.each_alone, budget)
    chosen = search(kept)
    asked = [REFERENCE, str(column), str(replace(column, keep_fp32=tuple(kept)))]
    confirmed = of_model(evaluator, store, list(dict.fromkeys(asked)))
    return Plan(
        model=evaluator.target.name,
        column=str(column),
        modules=_modules(evaluator.lm.facts.get("family"), kept),
        budget=budget,
        sites=search.sites,
        keep_fp32=kept,
        alone=harm,
        search=chosen,
        exact=confirmed[asked[0]],
        before=confirmed[asked[1]],
        after=confirmed[asked[2]],
    )


def _modules(family: str | None, sites: Sequence[str]) -> list[str]:
    """Norms by the ends of their names in Hugging Face's models; none of what has no family."""
    if family is None:
        return []
    names = families[family].folder
    return list(dict.fromkeys(names.module(site) for site in sites))
