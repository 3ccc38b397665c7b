"""Pyro's own tests with `ppvae.SVI` in place of `pyro.infer.SVI`: how many of those that build an SVI still pass.

The tests are those of a checkout of Pyro (https://github.com/pyro-ppl/pyro, Apache-2.0; the package under test is the
installed pyro-ppl). Each file runs as it is; what passes and builds an SVI runs again with ours, eager, and compiled
with graphs as they were traced. `conformance_plugin.py` replaces the class.

    git clone --depth 1 https://github.com/pyro-ppl/pyro ../pyro
    python benchmarks/conformance.py --pyro ../pyro
    python benchmarks/conformance.py --pyro ../pyro --modes eager --files tests/optim tests/infer/test_jit.py

All files take hours on two cores; the exit status is 1 where an eager test is lost.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyro
import tyro

Mode = Literal["eager", "compiled"]
Rows = dict[str, dict[str, Any]]
"""What became of each test, by its name."""

LEFT_OUT = ("tests/perf/", "tests/infer/mcmc/")
"""A script with timings; tests of MCMC, one of which takes SVI steps before it samples."""


@dataclass(frozen=True)
class Args:
    """Run Pyro's own tests with ppvae's SVI in place of Pyro's."""

    pyro: Path
    """A checkout of Pyro."""
    files: tuple[str, ...] = ()
    """Which of its test files or folders, e.g. tests/optim; by default all in which an SVI is built."""
    modes: tuple[Mode, ...] = ("eager", "compiled")
    """How our SVI runs."""
    max_seconds: float = float("inf")
    """Tests that take longer unpatched are not run again; the table says how many."""


def files_with_svi(checkout: Path) -> list[str]:
    """The test files that name SVI, and the folders of tests of a `pyro.contrib` package that builds one."""
    tests = [path for path in sorted(checkout.glob("tests/**/test_*.py")) if re.search(r"\bSVI\b", path.read_text())]
    contrib = [path for path in Path(pyro.__file__).parent.glob("contrib/*/**/*.py") if "SVI(" in path.read_text()]
    folders = {path.relative_to(Path(pyro.__file__).parent).parts[1] for path in contrib}
    tests += [folder for name in sorted(folders) if (folder := checkout / "tests/contrib" / name).is_dir()]
    names = [path.relative_to(checkout).as_posix() for path in tests]
    return [name for name in names if not f"{name}/".startswith(LEFT_OUT)]


def run_tests(checkout: Path, svi: str, tests: Sequence[str]) -> Rows:
    """Runs files or single tests with Pyro's SVI ("pyro") or ours ("eager", "compiled")."""
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        report, chosen = Path(folder) / "report.jsonl", Path(folder) / "tests.txt"
        chosen.write_text("\n".join(str(checkout / test) for test in tests))
        # The checkout comes last on the path, so that the package is the installed one and `tests` is the checkout's.
        options = ["-p", "conformance_plugin", "-p", "no:randomly", "-p", "no:cacheprovider", "--import-mode=append"]
        command = [sys.executable, "-m", "pytest", *options, "-q", "--tb=no", "--disable-warnings"]
        subprocess.run(
            [*command, "--svi", svi, "--svi-report", str(report), f"@{chosen}"],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=sys.stderr,
            check=False,
        )
        lines = report.read_text().splitlines() if report.exists() else []
    return {row["test"]: row for row in map(json.loads, lines)}


def report(unpatched: Rows, slow: set[str], patched: dict[str, Rows]) -> bool:
    """Prints a table by file and the names of the tests that are lost; returns whether eager has lost none."""
    kept = {name for name, row in unpatched.items() if row["svi"] and row["outcome"] == "passed"}
    lost = {mode: [name for name in sorted(kept - slow) if not _passed(rows, name)] for mode, rows in patched.items()}
    columns = [*patched, *(["by a graph"] if "compiled" in patched else []), *(["left out: slow"] if slow else [])]
    print("| file | " + " | ".join(["unpatched", *columns]) + " |\n|" + " --- |" * (len(columns) + 2))
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in sorted(kept):
        by_file[name.split("::")[0]].append(name)
    for file, names in [*by_file.items(), ("all", sorted(kept))]:
        cells = [len(names), *(sum(_passed(rows, name) for name in names) for rows in patched.values())]
        if "compiled" in patched:
            cells.append(sum(_passed(patched["compiled"], n) and patched["compiled"][n]["graphs"] for n in names))
        cells += [len(slow.intersection(names))] if slow else []
        print(f"| {file} | " + " | ".join(map(str, cells)) + " |")
    for mode, names in lost.items():
        print(f"\n{mode}: {len(names)} lost")
        for name in names:
            print(f"  {name}: {patched[mode].get(name, {}).get('error', 'did not run')}")
    return not lost.get("eager")


def _passed(rows: Rows, name: str) -> bool:
    return rows.get(name, {}).get("outcome") == "passed"


def main(args: Args) -> int:
    """Runs the tests and prints the table."""
    if not (args.pyro / "tests" / "infer").is_dir():
        raise SystemExit(f"--pyro must be a checkout of Pyro with its tests, got {args.pyro}")
    checkout = args.pyro.resolve()
    unpatched = run_tests(checkout, "pyro", args.files or files_with_svi(checkout))
    chosen = [name for name, row in unpatched.items() if row["svi"] and row["outcome"] == "passed"]
    slow = {name for name in chosen if unpatched[name]["seconds"] > args.max_seconds}
    again = [name for name in chosen if name not in slow]
    return 0 if report(unpatched, slow, {mode: run_tests(checkout, mode, again) for mode in args.modes}) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
