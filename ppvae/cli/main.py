"""`ppvae`, or `python -m ppvae`: one screen of what there is, and the commands by name.

ppvae                       this list; ppvae --version says what it runs on
ppvae train MODEL ...       the same as python -m ppvae.examples.MODEL
ppvae evaluate RUN ...      the same as python -m ppvae.evaluate
ppvae explore RUN           a page of a run in the browser
ppvae doctor RUN            what is right and wrong with the pair of a run
ppvae sweep MODEL ...       several seeds and settings of a model, in one table
ppvae share RUN             its model card; with --to, the upload to the Hugging Face Hub
ppvae export RUN            its encoder and decoder as ONNX
"""

from __future__ import annotations

import ast
import importlib
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated

import tyro

from ppvae.cli.pipes import outlives_its_reader

FEW = 200
"""Test data that a pair is looked over on."""


@outlives_its_reader
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 2 where there is none of that name."""
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(overview())
        return 0
    if command in ("-V", "--version"):
        print(_versions())
        return 0
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": partial(_command, "evaluate"),
        "explore": partial(_command, "explore"),
        "doctor": _doctor,
        "sweep": partial(_command, "sweep"),
        "share": partial(_command, "share"),
        "export": partial(_command, "export_run"),
    }
    if command not in commands:
        names = ", ".join(commands)
        print(f"error: there is no command {command!r}, but there are {names}; ppvae lists them", file=sys.stderr)
        return 2
    return commands[command](rest)


def overview() -> str:
    """The commands and the models, a line each."""
    width = max(map(len, models()))
    lines = [
        "ppvae: variational autoencoders as Pyro model/guide pairs",
        "",
        "  ppvae train MODEL     trains a model into a folder, runs/MODEL by default",
        "  ppvae evaluate RUN    log p(x) of a run, and how far to believe it",
        "  ppvae explore RUN     codes and live decoder in the browser; --export FILE",
        "  ppvae doctor RUN      sites, gradients; ppvae.doctor(pair, x) of your own",
        "  ppvae sweep MODEL     seeds and settings, compared: --seeds 5 --beta 1 2 4",
        "  ppvae share RUN       its model card; --to OWNER/NAME puts it on the Hub",
        "  ppvae export RUN      its encoder and decoder as ONNX, compared with torch",
        "",
        "each has --help. Models, on embedded data in about a minute; images also",
        "with --dataset mnist --data-root DIR, or on a folder of your own:",
        "",
        *(f"  {name:<{width}}  {text}" for name, text in models().items()),
        "",
        "your own pair: ppvae.fit(pair, x), ppvae.log_marginal(pair, x)",
        '"python -m ppvae" is the same as "ppvae"',
    ]
    return "\n".join(lines)


@cache
def models() -> dict[str, str]:
    """What each example says of itself; none of them is imported."""
    found = {}
    for path in sorted((Path(__file__).parents[1] / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "\nEXPERIMENT = " in source:
            first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
            found[path.stem] = first.partition(": `python")[0].partition(" (")[0].rstrip(".:")
    return found


def _versions() -> str:
    """What a report of a fault has to say of where it was met."""
    from ppvae.infer.run_config import versions

    return ", ".join(f"{name} {version}" for name, version in {**versions(), "on": platform.platform()}.items())


def _train(argv: list[str]) -> int:
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name not in models():
        print(f"error: there is no model {name!r}: {', '.join(models())}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"ppvae.examples.{name}").main(argv[1:]))


def _command(module: str, argv: list[str]) -> int:
    """Runs a command that has a file of its own, imported now."""
    return int(importlib.import_module(f"ppvae.cli.{module}").main(argv))


@dataclass(frozen=True)
class DoctorArgs:
    """Look the pair of a run over, on the first of its test data."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder that an example wrote, or fit with a recipe."""
    compile: bool = False
    """Also compile its training step, and say why where that fails."""
    cuda: bool = False
    """Run on a CUDA GPU."""
    data_root: Path | None = None
    """Where the data set lies, if not where the run found it."""
    trust: bool = False
    """Import and call the functions that a run of your own names in its config.json (fit's recipe)."""


def _doctor(argv: list[str]) -> int:
    from ppvae.cli.doctor import doctor
    from ppvae.cli.report import first
    from ppvae.cli.runs import open_run

    args = tyro.cli(DoctorArgs, args=argv, prog="ppvae doctor")
    try:
        device = "cuda" if args.cuda else "cpu"
        opened = open_run(args.run, trust=args.trust, device=device, data_root=args.data_root)
        if not opened.data:
            raise ValueError(f"{args.run} does not say on which data it is evaluated: its recipe has no data")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    diagnosis = doctor(opened.pair, *first(opened.data, FEW), compile=args.compile)
    print(diagnosis)
    return 0 if diagnosis.healthy else 1
