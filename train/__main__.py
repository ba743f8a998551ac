"""`python -m train`: see `python -m train --help`."""

from normlab.commands.train import main

if __name__ == "__main__":
    main()
