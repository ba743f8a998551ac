"""Labels of methods and runs: only what differs within the sweep."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from normlab.report.sources import Sources
from normlab.results import Record
from normlab.results.settings import RATE, differing, of_run, shown

TYPES = ("norm.type", "placement.type")


class Labels:
    """How methods and runs are called: by the fields in which they differ, and nothing else.

    Args:
        configs: of all runs, flat.
    """

    def __init__(self, configs: Sequence[Mapping[str, Any]]):
        fields = differing(map(dict, configs))
        self.fields = [k for k in TYPES if len({c[k] for c in configs if k in c}) > 1]
        self.fields += [k for k in fields if k not in (RATE, "seed", *self.fields)]
        self.of_a_run = [k for k in (RATE, "seed") if k in fields]
        self.methods = list(dict.fromkeys(self.method(c) for c in configs if TYPES[0] in c))

    @classmethod
    def of(cls, sources: Sources) -> "Labels":
        """The labels of everything in a report; a run that was refused has no say in them."""
        evaluated = [{"transform": r.model.transform} for r in sources.records if of_run(r)]
        begun = [run.identity for run in sources.runs if run.state != "refused"]
        return cls([*(begun or [run.identity for run in sources.runs]), *evaluated])

    def method(self, config: Mapping[str, Any]) -> str:
        """Norm, placement and settings, as far as they differ: "layernorm, width 64"."""
        found = {k: config[k] for k in self.fields if k in config}
        types = [str(found.pop(k)) for k in TYPES if k in found]
        if not types and not found:  # nothing differs: the whole name
            types = [str(config.get(k, "?")) for k in TYPES]
        return ", ".join([" ".join(types)] * bool(types) + self._settings(found))

    def run(self, config: Mapping[str, Any]) -> str:
        """A method's label, and which learning rate and seed of it: "layernorm, lr 0.1, seed 2"."""
        own = {k: config[k] for k in self.of_a_run if k in config}
        return ", ".join([self.method(config), *self._settings(own)])

    def records(self, records: Sequence[Record]) -> list[Record]:
        """The records, those of training runs under their labels, which say norm and placement."""
        known: dict[str, str] = {}
        for r in records:
            if config := of_run(r):
                known[r.model.name] = self.run(config | {"transform": r.model.transform})
        again = Counter(known.values())
        labels = {name: said if again[said] == 1 else name for name, said in known.items()}
        return [
            replace(r, model=replace(r.model, name=labels[r.model.name], norm=None, placement=None))
            if r.model.name in labels
            else r
            for r in records
        ]

    def _settings(self, found: Mapping[str, Any]) -> list[str]:
        """Each as "field value", the field without its group where no other is called so."""
        last = [k.rpartition(".")[2] for k in (*self.fields, *self.of_a_run)]
        names = {k: n if last.count(n := k.rpartition(".")[2]) == 1 else k for k in found}
        return [f"{names[k]} {_brief(value)}" for k, value in found.items()]


def _brief(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(shown(value))
