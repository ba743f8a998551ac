"""Perplexities of models in chosen precisions: protocols, scores, comparisons."""
