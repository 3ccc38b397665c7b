"""`ppvae share RUN [--to OWNER/NAME]`: the model card of a run, and what would be uploaded; with `--to` it is."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ppvae.cli.hub import push_to_hub, shared_files


@dataclass(frozen=True)
class Args:
    """Show the model card of a run and the files that go with it; with --to, upload them to the Hugging Face Hub."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder. Evaluate it first: the card has what `ppvae evaluate` found."""
    to: str | None = None
    """Repository to upload to, owner/name; nothing leaves this machine without it."""
    license: str | None = None
    """Licence of the weights as the hub names it, such as apache-2.0."""
    tags: tuple[str, ...] = ()
    """What the model is filed under besides."""
    private: bool = False
    """Make a new repository private."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    args = tyro.cli(Args, args=argv, prog="ppvae share")
    try:
        if args.to is None:
            print(_preview(args))
        else:
            url = push_to_hub(args.run, args.to, license=args.license, tags=args.tags, private=args.private)
            print(f'uploaded: {url}\nto open it: ppvae.from_hub("{args.to}")')
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _preview(args: Args) -> str:
    """The card, and the files with their sizes."""
    files = shared_files(args.run, args.run.resolve().name, license=args.license, tags=args.tags)
    sizes = "\n".join(f"{len(content):>12,}  {name}" for name, content in files.items())
    return f"{files['README.md'].decode()}\nbytes that --to OWNER/NAME uploads:\n{sizes}"
