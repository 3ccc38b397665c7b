"""`python -m ppvae.evaluate RUN [RUN ...]`: the likelihood of trained runs, see `ppvae.cli.evaluate`."""

import sys

from ppvae.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
