"""`python -m train`: see `python -m train --help`."""

from collections.abc import Sequence

from normlab.cli import launch
from train.config import TrainConfig
from train.identity import refuse
from train.loop import train

EXAMPLES = """
python -m train norm=dyt placement=peri optimizer.lr=3e-3      one run, in runs/dyt-peri-HASH
python -m train norm=dyt placement=peri optimizer.lr=3e-3      again: goes on where it stopped
python -m train -m norm=layernorm,rmsnorm seed=0,1,2           a sweep: each of 2 x 3 in turn
python -m train model=tiny data=embedded steps=60 optimizer.warmup=5       in seconds, no network
python -m evaluate runs=runs                                   then: perplexities of what is there
"""


def main(config: TrainConfig, asked: Sequence[str]) -> None:
    """One run; a divergence is its result, not an error."""
    train(config, asked)


if __name__ == "__main__":
    launch("train", TrainConfig, main, EXAMPLES, refuse)
