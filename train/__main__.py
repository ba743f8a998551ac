"""`python -m train`: see `python -m train --help`."""

from collections.abc import Sequence

from normlab.cli import launch
from train.config import TrainConfig
from train.loop import train


def main(config: TrainConfig, asked: Sequence[str]) -> None:
    """One run; a divergence is its result, not an error."""
    train(config, asked)


if __name__ == "__main__":
    launch("train", TrainConfig, main)
