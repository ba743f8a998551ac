"""`python -m evaluate`: see `python -m evaluate --help`, and `python -m evaluate list`."""

from normlab.commands.evaluate import main

if __name__ == "__main__":
    main()
