"""The reference pages, generated from the method cards of what is registered."""
