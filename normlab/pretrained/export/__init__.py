"""Models written in other programs' formats."""
