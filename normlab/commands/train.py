"""`python -m train [tune|remove]`: one run or a sweep; rates by a rule; norms taken away."""

import sys
from collections.abc import Sequence

from normlab.commands.launch import launch, verb
from normlab.training.config import TrainConfig
from normlab.training.identity import refuse
from normlab.training.start import resolved
from normlab.training.trainer import train
from normlab.training.tuning import final_loss

EXAMPLES = """
python -m train norm=dyt placement=peri optimizer.lr=3e-3      one run, in runs/dyt-peri-HASH
python -m train norm=dyt placement=peri optimizer.lr=3e-3      again: resumes where it stopped
python -m train -m norm=layernorm,rmsnorm seed=0,1,2           a sweep: each of 2 x 3 in turn
python -m train model=tiny data=embedded steps=60 optimizer.warmup=5       in seconds, no network
python -m train tune norm=rmsnorm,dyt optimizer.lr=2e-3,4e-3   rates by a grid that grows
python -m train init=smollm2-135m norm=dyt                     from pretrained weights
python -m train remove run=runs/layernorm-pre-HASH             its norms taken away, one by one
python -m evaluate runs=runs                                   then: perplexities of what is there
"""


def one_run(config: TrainConfig, asked: Sequence[str]) -> float:
    """The validation loss of one run; a divergence is its result, not an error."""
    named = [override.partition("=")[0] for override in asked]
    return final_loss(train(resolved(config, named), asked).record)


def main() -> None:
    """What `python -m train` and `normlab-train` do."""
    asked = verb({"remove", "tune"})
    if asked is None:
        launch("train", TrainConfig, one_run, EXAMPLES, refuse)
    elif asked == "remove":
        from normlab.commands import remove

        remove.main()
    else:
        from normlab.commands import tune

        tune.main(sys.argv[1:])
