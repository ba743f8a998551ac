"""`python -m train.remove` is now `python -m train remove`."""

import sys

if __name__ == "__main__":
    sys.exit("python -m train.remove is now: python -m train remove")
