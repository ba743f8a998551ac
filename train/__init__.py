"""Training of small language models: `python -m train`."""
