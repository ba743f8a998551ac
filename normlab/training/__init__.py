"""Training of small language models: trainer, step, optimizer, diagnostics, tracking."""
