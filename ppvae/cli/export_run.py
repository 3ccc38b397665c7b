"""`ppvae export RUN`: encoder and decoder of a run as ONNX files, or programs of `torch.export`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ppvae.cli.export import export
from ppvae.cli.exported import TOLERANCE
from ppvae.cli.report import first
from ppvae.cli.runs import open_run

FEW = 20
"""Test data that the files are compared with torch on."""


@dataclass(frozen=True)
class Args:
    """Write the encoder and the decoder of a run as files that other programs run, each compared with torch."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that an example wrote, or fit with a recipe."""
    format: Literal["onnx", "pt2"] = "onnx"
    """onnx, or pt2, which torch.export.load reads."""
    out: Path | None = None
    """Folder of the files; by default export in the run folder."""
    tolerance: float = TOLERANCE
    """How far the outputs may be from torch's, as a share of the largest."""
    data_root: Path | None = None
    """Where the data set lies, if not where the run found it."""
    trust: bool = False
    """Import and call the functions that a run of your own names in its config.json (fit's recipe)."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 1 where one of the two could not be exported."""
    args = tyro.cli(Args, args=argv, prog="ppvae export")
    try:
        opened = open_run(args.run, trust=args.trust, data_root=args.data_root)
        if not opened.data:
            raise ValueError(f"{args.run} does not say on which data it is evaluated: its recipe has no data")
        folder, data = args.out or args.run / "export", first(opened.data, FEW)
        made = export(opened.pair, *data, folder=folder, format=args.format, tolerance=args.tolerance)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(made)
    return 1 if made.left_out else 0
