"""`python -m connlib` is the `connlib` command."""

import sys

from connlib.cli import main

if __name__ == "__main__":
    sys.exit(main())
