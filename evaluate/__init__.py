"""Evaluation: perplexities of trained models in chosen precisions, as records and a table."""
