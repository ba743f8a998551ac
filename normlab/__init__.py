"""normlab: a research framework for normalization experiments in transformers."""

__version__ = "0.1.0"
