"""`ppvae explore RUN`: a page of a trained run, served on this machine or written into one file."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ppvae._validate import check_count
from ppvae.cli.flags import in_flags
from ppvae.cli.report import first
from ppvae.cli.runs import restore
from ppvae.explorer.exploration import look_at
from ppvae.explorer.explore import LIMIT, check_installed, check_port, checked_file, show
from ppvae.pair import check_batch


@dataclass(frozen=True)
class ExploreArgs:
    """Look at a run in the browser: latent map, likelihood terms of any test datum, the decoder live."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that an example wrote, or fit with a recipe."""
    export: Path | None = None
    """Write one HTML file that needs neither server nor network, with the decoder in it, in place of serving."""
    limit: int = LIMIT
    """The most test data that are shown, the first ones."""
    num_samples: int | None = None
    """Draws of each datum's log p(x); by default 500 of importance sampling, of other methods what they say."""
    method: Literal["importance", "adaptive", "annealed", "auto"] = "importance"
    """How log p(x) is estimated; auto takes longer, and is right for data whose k̂ is above 0.7."""
    tsne: bool = True
    """Whether there is a map by t-SNE, which takes seconds for a thousand data."""
    port: int = 0
    """Port of the server, which only this machine reaches; 0 is any that is free."""
    browser: bool = True
    """Open the page in the browser; else its address is printed."""
    data_root: Path | None = None
    """Where the data set lies, if not where the run found it."""
    trust: bool = False
    """Import and call the functions that a run of your own names in its config.json (fit's recipe)."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 2 for a wrong argument, or a run that has nothing to show."""
    args = tyro.cli(ExploreArgs, args=argv, prog="ppvae explore")
    try:
        check_count("limit", args.limit, at_least=2)
        check_port(args.port)
        check_installed()
        file = None if args.export is None else checked_file(args.export)
        run = restore(args.run, device="cpu", data_root=args.data_root, trust=args.trust)
        if not run.test:
            raise ValueError(f"{args.run} does not say on which data it is evaluated: its recipe has no data")
        data = first(run.test, args.limit)
        labels = None if run.labels is None else run.labels[: args.limit]
        print(f"{args.run}: codes and likelihoods of {check_batch(data)} test data", file=sys.stderr)
        found = look_at(
            run.pair,
            *data,
            labels=labels,
            num_samples=args.num_samples,
            method=args.method,
            tsne=args.tsne,
            symbol=run.symbol,
            title=f"{type(run.pair).__name__}, {args.run}",
        )
        show(found, file, port=args.port, browser=args.browser)
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        print(f"error: {in_flags(str(error), args)}", file=sys.stderr)
        return 2
    if file is not None:
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB, one file that loads nothing")
    return 0
