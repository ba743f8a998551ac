"""`python -m evaluate.figures` is now `python -m evaluate figures`."""

import sys

if __name__ == "__main__":
    sys.exit("python -m evaluate.figures is now: python -m evaluate figures")
