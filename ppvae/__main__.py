"""`python -m ppvae`: what there is to run."""

import sys

from ppvae.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
