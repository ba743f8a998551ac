"""Labels of methods and runs: only what differs within the sweep."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from normlab.results.record import Record
from normlab.results.settings import RATE, decides, differing, of_run, shown

TYPES = ("norm.type", "placement.type", "optimizer.type")


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
    def of_records(cls, records: Sequence[Record]) -> "Labels":
        """The labels of what was evaluated."""
        configs = [(of_run(r), r.model.transform) for r in records if of_run(r)]
        return cls([
            {k: v for k, v in config.items() if decides(k)} | {"transform": transform}
            for config, transform in configs
        ])  # fmt: skip

    def method(self, config: Mapping[str, Any]) -> str:
        """Norm, placement and settings, as far as they differ: "layernorm, width 64"."""
        found = {k: config[k] for k in self.fields if k in config}
        types = " ".join(str(found.pop(k)) for k in TYPES if k in found)
        said = [types] * bool(types) + self._settings(found)
        # Where nothing is left to say: the whole name.
        return ", ".join(said) or " ".join(str(config.get(k, "?")) for k in TYPES[:2])

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
        """Each as "field value"; a switch as its field where it is on, else nothing.

        The field stands without its group where no other is called so.
        """
        last = [k.rpartition(".")[2] for k in (*self.fields, *self.of_a_run)]
        names = {k: n if last.count(n := k.rpartition(".")[2]) == 1 else k for k in found}
        return [_said(names[k], value) for k, value in found.items() if value is not False]


def _said(name: str, value: Any) -> str:
    if value is True:
        return name
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {shown(value)}"
