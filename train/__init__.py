"""`python -m train [VERB]`: a few lines over normlab/commands/."""
