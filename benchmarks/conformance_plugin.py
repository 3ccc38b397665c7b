"""A pytest plugin that runs Pyro's tests with `ppvae.SVI` in place of `pyro.infer.SVI`; `conformance.py` starts it.

One line of JSON a test is written: its name, what became of it, whether it built an SVI, whether one ran a graph, and
the losses of its steps where it was stopped.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any
from zlib import crc32

import pyro
import pyro.infer
import pytest
import torch
import torch._dynamo  # as the first step of an optimizer does, which is not to count
from pyro.infer import ELBO

import ppvae
from ppvae.params import baselines_kept

sys.path[:] = [folder for folder in sys.path if not (Path(folder) / "conftest.py").exists()]
"""So that `conftest` is that of the checkout, which pytest puts at the end; ppvae is imported already."""

built: list[Any] = []
"""The SVI objects of the test that runs."""

losses: list[float] = []
"""Those of its steps."""

most_steps: list[int] = []
"""How many it may take, where that is limited."""

stopped: list[str] = []
"""The test that runs, where it took too long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which SVI the tests use, and where the report goes."""
    parser.addoption("--svi", choices=("pyro", "eager", "compiled"), default="pyro")
    parser.addoption("--svi-report", type=Path, required=True)
    parser.addoption("--max-seconds", type=float, default=0.0)
    parser.addoption("--max-steps", type=Path, required=True, help="a file of JSON: the steps of tests by their name")


def pytest_configure(config: pytest.Config) -> None:
    """Puts the SVI to be tested in the place of Pyro's, wherever that was imported to."""
    which = config.getoption("--svi")
    original = pyro.infer.SVI
    replacement = {
        "pyro": lambda: noted(original),
        "eager": lambda: noted(ppvae.SVI, compile=False),
        "compiled": lambda: noted(FromTheFirstStep, compile=True),
    }[which]()
    for module in [module for name, module in sys.modules.items() if name.split(".")[0] == "pyro"]:
        for name, value in list(vars(module).items()):
            if value is original:
                setattr(module, name, replacement)
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:FutureWarning")  # later than Pyro's tests are
    if which == "compiled":  # graphs run as they were traced: a compiler takes seconds for each
        torch._inductor.compile = lambda module, inputs, options: module
        ppvae.compile.compiled.build_headers = lambda: None
        config.addinivalue_line("filterwarnings", "ignore:not compiled")


def noted(base: type, **options: Any) -> type:
    """`base` with other defaults, whose objects and losses are noted."""

    class SVI(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **options, **kwargs)
            built.append(self)

        def step(self, *args: Any, **kwargs: Any) -> Any:
            if most_steps and len(losses) >= most_steps[0]:
                stop(f"after {len(losses)} steps")
            loss = super().step(*args, **kwargs)
            losses.append(float(sum(loss) if isinstance(loss, tuple) else loss))
            return loss

    return SVI


def stop(when: str) -> None:
    """Ends the test that runs."""
    stopped.append(when)
    pytest.fail(f"stopped {when}")


class FromTheFirstStep(ppvae.SVI):
    """Compiles from the first step on, where others first meet the parameters: many tests take a single step."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Meets the parameters, with random numbers that are drawn again, and takes the step."""
        if not self._steps:
            state, nesting = pyro.util.get_rng_state(), getattr(self.objective, "max_plate_nesting", None)
            with self.running(), baselines_kept():
                self._evaluate(args, kwargs)
                pyro.util.set_rng_state(state)
                if nesting != getattr(self.objective, "max_plate_nesting", None):  # guessed from draws before
                    ELBO._guess_max_plate_nesting(self.objective, self.model, self.guide, args, kwargs)
            for parameter in self.parameters():
                parameter.grad = None
        return super().step(*args, **kwargs)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seeds every test by its name: most of Pyro's take the numbers that the one before left."""
    pyro.set_rng_seed(crc32(item.nodeid.encode()))
    for of_the_last in (built, losses, most_steps, stopped):
        of_the_last.clear()
    steps = json.loads(item.config.getoption("--max-steps").read_text())
    most_steps.extend([steps[item.nodeid]] if item.nodeid in steps else [])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Stops a test that takes more of the processor's time than it may."""
    seconds = item.config.getoption("--max-seconds")

    before = signal.signal(signal.SIGPROF, lambda number, frame: stop(f"after {seconds} seconds"))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Writes what became of a test."""
    report = yield
    if report.when == "call" or (report.when == "setup" and not report.passed):
        outcome = "slow" if stopped else "xfailed" if hasattr(report, "wasxfail") else report.outcome
        graphs = any(svi._compiled.num_graphs for svi in built if isinstance(svi, ppvae.SVI))
        row = {"test": item.nodeid, "outcome": outcome, "svi": bool(built), "graphs": graphs}
        row["seconds"] = round(report.duration, 2)
        row["losses"] = losses if stopped else []
        row["error"] = str(report.longrepr).splitlines()[-1] if report.failed else ""
        with open(item.config.getoption("--svi-report"), "a") as file:
            file.write(json.dumps(row) + "\n")
    return report
