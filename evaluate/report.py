"""`python -m evaluate.report` is now `python -m evaluate report`."""

import sys

if __name__ == "__main__":
    sys.exit("python -m evaluate.report is now: python -m evaluate report")
