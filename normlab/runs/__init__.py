"""A run's directory: its config, checkpoints and provenance."""
