"""Evaluates a trained run: `python -m ppvae.evaluate RUN --num-samples 5000 --limit 1000`.

Rebuilds the pair and the data of the run from its `config.json`, loads its weights, prints the table for the
test set and writes `evaluation.json` into the run folder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ppvae.evaluate.report import report, table
from ppvae.examples.experiment import restore
from ppvae.storage import write_json


@dataclass(frozen=True)
class Args:
    """Evaluate a trained run: ELBO and log p(x) of its test set."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that an example wrote."""
    num_samples: int = 1000
    """Importance samples per datum."""
    limit: int | None = None
    """Evaluate only the first data of the test set."""
    seed: int = 0
    """Of the draws."""
    cuda: bool = False
    """Run on a CUDA GPU."""
    data_root: Path | None = None
    """Where the data set lies, if not where the run found it."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = tyro.cli(Args, args=arguments)
    try:
        pair, test, symbol = restore(args.run, device="cuda" if args.cuda else "cpu", data_root=args.data_root)
        figures = report(
            pair,
            {"test": test},
            num_samples=args.num_samples,
            limit=args.limit,
            seed=args.seed,
            symbol=symbol,
            progress=sys.stderr.isatty(),
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(figures))
    print(f"written to {write_json(args.run / 'evaluation.json', figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
