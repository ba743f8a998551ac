"""What a table shows, in one sentence made of its numbers."""

import math
from collections.abc import Mapping, Set

from normlab.results.record import OK
from normlab.results.table import Cell, Table, difference, number

REFERENCE = "fp32"
RULE = "random_tokens"
"""The scale rule to name where another leaves errors."""
NEAR = 1e-3
"""Share of fp32's perplexity within which a column counts as equal to it."""

Pairs = Mapping[str, tuple[Cell, Cell]]
"""By a row's name its cell in fp32 and its cell in one other column, both with a number."""


def summary(table: Table) -> str:
    """Where perplexities lie in fp32, what each other column changes, what a scale rule restores.

    Where a rule leaves errors, the one to use.

    Empty for a table without numbers, and for one number alone.
    """
    rows = dict(zip(_names(table), table.rows.values(), strict=True))
    exact = {name: cells[REFERENCE] for name, cells in rows.items() if _finite(cells, REFERENCE)}
    parts = [_spread(exact)] if len(exact) > 1 else []
    far: dict[str, set[str]] = {}
    cure = ""
    for precision in table.precisions:
        pairs = {
            name: (cell, rows[name][precision])
            for name, cell in exact.items()
            if _known(rows[name].get(precision))
            and (precision != REFERENCE or _share(cell, cell) > NEAR)  # of a transform
        }
        if pairs:
            plain, _, rule = precision.partition("+")
            far[precision] = {name for name, pair in pairs.items() if _share(*pair) > NEAR}
            before = far.get(plain, set()) & pairs.keys() if rule else set()
            parts.append(f"{precision} {_changes(pairs, far[precision], before)}")
            lost = any(cell.overflowed or cell.zero for _, cell in pairs.values())
            if rule and (far[precision] or lost):
                cure = cure or f"the rule to use is {RULE}: precision=[{REFERENCE},{plain}+{RULE}]"
    if cure and not any(RULE in precision for precision in table.precisions):
        parts.append(cure)
    return f"{'; '.join(parts)}." if parts else ""


def _names(table: Table) -> list[str]:
    """Rows by norm, placement and settings where those tell them apart, else by model."""
    last = [key.rpartition(".")[2] for key in table.settings]
    said = [
        ", ".join([f"{norm} {placement}", *(f"{n} {v}" for n, v in zip(last, values, strict=True))])
        for _, norm, placement, *values in table.rows
    ]
    if len(said) > 1 and len(set(said)) == len(said):
        return said
    models = [str(subject[0]) for subject in table.rows]
    whole = [" ".join(map(str, subject)) for subject in table.rows]
    return models if len(set(models)) == len(models) else whole


def _known(cell: Cell | None) -> bool:
    return cell is not None and cell.status == OK and cell.value is not None


def _finite(cells: Mapping[str, Cell], precision: str) -> bool:
    cell = cells.get(precision)
    return _known(cell) and math.isfinite(_value(cells[precision]))


def _value(cell: Cell) -> float:
    return math.nan if cell.value is None else cell.value


def _share(exact: Cell, cell: Cell) -> float:
    """How far a cell is from what Δ refers to, as a share; infinite where it is no number."""
    share = abs(_value(cell) - exact.exact) / exact.exact
    return share if math.isfinite(share) else math.inf


def _spread(exact: Mapping[str, Cell]) -> str:
    low = min(exact, key=lambda name: _value(exact[name]))
    high = max(exact, key=lambda name: _value(exact[name]))
    ends = [f"{number(_value(exact[name]))} ({name})" for name in (low, high)]
    return f"In fp32 the {len(exact)} models lie between {' and '.join(ends)}"


def _changes(pairs: Pairs, far: Set[str], before: Set[str]) -> str:
    """What one column does to the rows that have a number in it.

    Args:
        pairs: those rows.
        far: those of them that are further than `NEAR` from fp32.
        before: those that are further in the same column without its scale rule.
    """
    name = max(far or before or pairs, key=lambda row: _share(*pairs[row]))
    exact, cell = pairs[name]
    if far:
        most = ", most of all" if len(far) > 1 else ","
        whom = name if len(pairs) == 1 else f"{len(far)} of {len(pairs)} models{most} {name},"
        lost = f" ({cell.overflowed:,} rows overflow)" if cell.overflowed else ""
        verb = "still takes" if before else "takes"
        return f"{verb} {whom} from {number(exact.exact)} to {number(_value(cell))}{lost}"
    moved = difference(cell.delta, cell.stderr) if cell.delta is not None else "equal"
    if before:
        whom, others = (name, 0) if len(before) == 1 else (f"those {len(before)}", len(before) - 1)
    else:
        whom, others = "", len(pairs) - 1
    verb = f"restores {whom} to" if before else "stays"
    worst = f"at most {moved}, {name}" if others else moved
    return f"{verb} within {100 * _share(exact, cell):.1g} % of fp32 ({worst})"
