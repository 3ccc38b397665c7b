"""Pyro's own tests with `ppvae.SVI` in place of `pyro.infer.SVI`: how many of those that build an SVI still pass.

The tests are those of a checkout of Pyro (https://github.com/pyro-ppl/pyro, Apache-2.0; the package under test is the
installed pyro-ppl). Each file runs as it is; what passes and builds an SVI runs again with ours, eager, and compiled
with graphs as they were traced. `conformance_plugin.py` replaces the class. What takes too long to run to its end is
compared by its losses: those of the first steps must be Pyro's, to rounding.

    git clone --depth 1 https://github.com/pyro-ppl/pyro ../pyro
    python benchmarks/conformance.py --pyro ../pyro --max-seconds 5
    python benchmarks/conformance.py --pyro ../pyro --modes eager --files tests/optim tests/infer/test_jit.py

All files take hours on two cores. What became of a file is kept in `--out` when all of its runs are done: started
again, the script goes on with the next one. The exit status is 1 where an eager test is lost.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

Mode = Literal["eager", "compiled"]
Rows = dict[str, dict[str, Any]]
"""What became of each test, by its name."""

LEFT_OUT = ("tests/perf/", "tests/infer/mcmc/")
"""A script with timings; tests of MCMC, one of which takes SVI steps before it samples."""

NAMES_SVI = re.compile(r"\bSVI\b|\bfit_svi\b|\blaplace_eig\b|\bvi_eig\b|\bForecaster\b|\bCEVAE\b|\bpyroapi\.tests\b")
"""In a test file: SVI, or what builds one in a `pyro.contrib` package or in pyroapi."""

MOST_STEPS, TOLERANCE = 100, 1e-3
"""Of slow tests: how many steps are compared, and how far a loss may be from Pyro's, relatively."""

PATIENCE = 10
"""How many times as long a test may take with our SVI as it may unpatched: it is traced at the first steps."""


@dataclass(frozen=True)
class Args:
    """Run Pyro's own tests with ppvae's SVI in place of Pyro's."""

    pyro: Path
    """A checkout of Pyro."""
    files: tuple[str, ...] = ()
    """Which of its test files or folders, e.g. tests/optim; by default all in which an SVI is built."""
    modes: tuple[Mode, ...] = ("eager", "compiled")
    """How our SVI runs."""
    max_seconds: float = 0.0
    """Tests that take more of the processor's time are stopped and compared by their losses; 0 for no limit."""
    out: Path = Path("runs/conformance")
    """Where what became of each file is kept; a file that is there does not run again."""


def files_with_svi(checkout: Path) -> list[str]:
    """The test files in which an SVI is built."""
    tests = [path for path in sorted(checkout.glob("tests/**/test_*.py")) if NAMES_SVI.search(path.read_text())]
    names = [path.relative_to(checkout).as_posix() for path in tests]
    return [name for name in names if not name.startswith(LEFT_OUT)]


def run_tests(checkout: Path, svi: str, tests: Sequence[str], max_seconds: float, steps: dict[str, int]) -> Rows:
    """Runs files or single tests with Pyro's SVI ("pyro") or ours ("eager", "compiled"), some for so many steps."""
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        report, chosen, most = (Path(folder) / name for name in ("report.jsonl", "tests.txt", "steps.json"))
        most.write_text(json.dumps(steps))
        chosen.write_text("\n".join(str(checkout / test) for test in tests))
        # The checkout comes last on the path, so that the package is the installed one and `tests` is the checkout's.
        options = ["-p", "conformance_plugin", "-p", "no:randomly", "-p", "no:cacheprovider", "--import-mode=append"]
        command = [sys.executable, "-m", "pytest", *options, "-q", "--tb=no", "--disable-warnings"]
        limits = ["--max-seconds", str(max_seconds), "--max-steps", str(most)]
        subprocess.run(
            [*command, "--svi", svi, "--svi-report", str(report), *limits, f"@{chosen}"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=sys.stderr,
            check=False,
        )
        lines = report.read_text().splitlines() if report.exists() else []
    return {row["test"]: row for row in map(json.loads, lines)}


def outcomes(args: Args, file: str) -> dict[str, Rows]:
    """What became of the tests of a file, unpatched and in each mode: kept from before, or run now."""
    kept = args.out / f"{file.replace('/', '.')}.json"
    if kept.exists() and set(args.modes) <= set(found := json.loads(kept.read_text())):
        return {mode: found[mode] for mode in ("pyro", *args.modes)}
    checkout = args.pyro.resolve()
    found = {"pyro": run_tests(checkout, "pyro", [file], args.max_seconds, {})}
    steps = {name: min(len(found["pyro"][name]["losses"]), MOST_STEPS) for name in comparable(found["pyro"])}
    for mode in args.modes:
        again = [*_counted(found["pyro"], "passed"), *steps]
        found[mode] = run_tests(checkout, mode, again, PATIENCE * args.max_seconds, steps) if again else {}
    args.out.mkdir(parents=True, exist_ok=True)
    kept.with_suffix(".part").write_text(json.dumps(found, indent=1))
    kept.with_suffix(".part").replace(kept)
    return found


def comparable(rows: Rows) -> list[str]:
    """The tests that were stopped after their first steps and have losses: `TraceTailAdaptive_ELBO` gives infinity."""
    return [name for name in _counted(rows, "slow") if any(map(math.isfinite, rows[name]["losses"]))]


def counts(found: dict[str, Rows]) -> list[int]:
    """The row of a table.

    Tests that pass unpatched and in each mode, and by a graph; those too slow, and how many have Pyro's losses in each.
    """
    passed = _counted(found["pyro"], "passed")
    modes = [rows for mode, rows in found.items() if mode != "pyro"]
    again = [sum(_passed(rows, name) for name in passed) for rows in modes]
    graphs = sum(_passed(rows, name) and rows[name]["graphs"] for rows in modes for name in passed)
    same = [sum(not part(found["pyro"], rows, name) for name in comparable(found["pyro"])) for rows in modes]
    return [len(passed), *again, graphs, len(_counted(found["pyro"], "slow")), *same]


def part(pyro: Rows, ours: Rows, name: str) -> str:
    """Where the losses of a slow test part from Pyro's; empty where they do not."""
    expected, losses = pyro[name]["losses"][:MOST_STEPS], ours.get(name, {}).get("losses", [])
    if len(losses) < len(expected):
        return f"{len(losses)} of {len(expected)} steps: {ours.get(name, {}).get('error', 'did not run')}"
    pairs = enumerate(zip(losses, expected, strict=False))
    apart = [step for step, (a, b) in pairs if a != b and not abs(a - b) <= TOLERANCE * max(abs(b), 1e-2)]
    return f"step {apart[0]}: {losses[apart[0]]}, expected {expected[apart[0]]}" if apart else ""


def lost(found: dict[str, Rows], mode: str) -> list[str]:
    """The tests that pass unpatched and not in a mode, or have other losses in it, each with what came."""
    names = [name for name in _counted(found["pyro"], "passed") if not _passed(found[mode], name)]
    tests = {name: found[mode].get(name, {}).get("error", "did not run") for name in names}
    tests |= {name: part(found["pyro"], found[mode], name) for name in comparable(found["pyro"])}
    return [f"{name}: {came}" for name, came in tests.items() if came]


def _counted(rows: Rows, outcome: str) -> list[str]:
    return [name for name, row in rows.items() if row["svi"] and row["outcome"] == outcome]


def _passed(rows: Rows, name: str) -> bool:
    return rows.get(name, {}).get("outcome") == "passed"


def _print_row(cells: Sequence[Any]) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main(args: Args) -> int:
    """Runs the tests and prints the table, file by file, and what is lost."""
    if not (args.pyro / "tests" / "infer").is_dir():
        raise SystemExit(f"--pyro must be a checkout of Pyro with its tests, got {args.pyro}")
    same = [f"same losses, {mode}" for mode in args.modes]
    columns = ["file", "unpatched", *args.modes, "by a graph", "slow", *same]
    _print_row(columns)
    _print_row(["---"] * len(columns))
    total = [0] * (len(columns) - 1)
    losses: dict[str, list[str]] = {mode: [] for mode in args.modes}
    for file in args.files or files_with_svi(args.pyro):
        found = outcomes(args, file)
        row = counts(found)
        if any(row):
            _print_row([file, *row])
        total = [a + b for a, b in zip(total, row, strict=True)]
        for mode in args.modes:
            losses[mode] += lost(found, mode)
    _print_row(["all", *total])
    for mode, tests in losses.items():
        print(f"\n{mode}: {len(tests)} lost")
        print("\n".join(f"  {test}" for test in tests))
    return 1 if losses.get("eager") else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
