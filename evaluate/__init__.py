"""`python -m evaluate [VERB]`: a few lines over normlab/commands/."""
