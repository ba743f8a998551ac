"""The search for a plan's sites: passes over validation text, each kept on disk once it is made."""

import json
import math
from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from normlab.evaluation.evaluator import Evaluator
from normlab.evaluation.perplexity import Scaled, Scores, score_columns
from normlab.norms.sites import with_statistic
from normlab.progress import Progress, console
from normlab.results.column import Column
from normlab.results.plan import Rise


class Search:
    """How far a column leads away from float32, by which norms are kept in it.

    Args:
        evaluator: of the model, on the text that decides; passes are kept in its OUT/search.json.
        column: what is planned for, no site kept.
    """

    def __init__(self, evaluator: Evaluator, column: Column):
        self.sites = with_statistic(evaluator.lm.model)
        self.title = f"{evaluator.target.name} {column}"
        self.column, self._evaluator = column, evaluator
        self._path = Path(evaluator.config.out) / "search.json"
        self._known = json.loads(self._path.read_text()) if self._path.exists() else {}

    def __call__(self, kept: Collection[str]) -> Rise:
        """With these sites in float32, on all windows."""
        return self._found(kept, len(self._evaluator.windows))

    def each_alone(self) -> dict[str, Rise]:
        """Of each site, where it alone is narrow, on the first quarter of the windows."""
        few, found = max(1, len(self._evaluator.windows) // 4), dict[str, Rise]()
        with Progress(f"{self.title}: each norm alone", len(self.sites)) as progress:
            for done, site in enumerate(self.sites, 1):
                found[site] = self._found([s for s in self.sites if s != site], few)
                progress.update(done, site)
        return found

    def _found(self, kept: Collection[str], windows: int) -> Rise:
        asked = replace(self.column, keep_fp32=tuple(s for s in self.sites if s in kept))
        key = f"{self._evaluator.key(asked)} {windows}"
        if key not in self._known:
            self._known[key] = rise = self._measured(kept, windows)
            half = self._path.with_suffix(".half")
            half.write_text(json.dumps(self._known))
            half.replace(self._path)
            if windows == len(self._evaluator.windows):
                far = f"{rise.share:+.3%}" if math.isfinite(rise.share) else "not finite"
                console.print(f"{self.title}: {len(kept)} of {len(self.sites)} in float32: {far}")
        return Rise(*self._known[key])

    def _measured(self, kept: Collection[str], windows: int) -> Rise:
        read, told = self._evaluator.windows[:windows], {s: s in kept for s in self.sites}
        found, exact = self._scores(self._narrow._replace(keep_fp32=told), windows), self._exact
        apart = np.abs(found.token_nll - exact.token_nll[:windows])[read.scored]
        more = (found.sum_nll - exact.window_nll[:windows].sum()) / read.counts.sum()
        both = np.expm1(more), apart.mean(dtype=np.float64)
        return Rise(*(float(x) if np.isfinite(x) else math.inf for x in both))

    @cached_property
    def _narrow(self) -> Scaled:
        return self._evaluator.scaled(self.column)

    @cached_property
    def _exact(self) -> Scores:
        return self._scores(self._evaluator.scaled(Column()), len(self._evaluator.windows))

    def _scores(self, scaled: Scaled, windows: int) -> Scores:
        made = self._evaluator
        read = made.windows[:windows]
        return score_columns(made.lm.model, read, [scaled], batch=made.batch)[0]
