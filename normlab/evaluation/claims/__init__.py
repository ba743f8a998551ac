"""Claims of papers as experiments: arms, a metric, a margin; a verdict from paired seeds."""

from normlab.evaluation.claims.claim import Claim
from normlab.evaluation.claims.metrics import Metric, metrics
from normlab.evaluation.claims.outcome import Outcome, Trial
from normlab.evaluation.claims.verdict import Verdict, verdict

__all__ = ["Claim", "Metric", "Outcome", "Trial", "Verdict", "metrics", "verdict"]
