"""`python -m datadream`, the same as the console script `datadream`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
