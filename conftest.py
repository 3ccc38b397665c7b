"""What holds for every test and every doctest: a seed of its own, nothing left behind, no compiler unless asked for.

Two workers run the tests side by side, each on one thread: threads of two that share cores wait for each other.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import tempfile
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

import pyro
import pytest
import torch

from tests.group import Group

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")  # each with a cache of compiled code of its own
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"ppvae_tests_{os.getuid()}_{worker}")


def seed_by(name: str) -> None:
    """Seeds torch, numpy and Python by a name: the same in every process, whatever ran before."""
    pyro.set_rng_seed(crc32(name.encode()))


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Data that a file of tests draws while it is imported have a seed of their own."""
    seed_by(collector.nodeid)


def pytest_collection_finish() -> None:
    """What has been imported stays: Python need not look for cycles among it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Generator[None]:
    """What several tests share is the same whichever of them runs first, and draws nothing of that one's numbers."""
    if fixturedef.scope == "function":
        return (yield)
    state = pyro.util.get_rng_state()
    seed_by(f"{request.node.nodeid}::{fixturedef.argname}[{getattr(request, 'param_index', 0)}]")
    shared = yield
    pyro.util.set_rng_state(state)
    return shared


@pytest.fixture(autouse=True)
def alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test and doctest starts from a seed of its own, and what it sets for the whole process ends with it."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    with pyro.settings.context(**pyro.settings.get()), pyro.get_param_store().scope():
        seed_by(request.node.nodeid)
        yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def return_freed_memory() -> Iterator[None]:
    """Takes back `ppvae.compile.keep_freed_memory`, which examples and graphs call: a worker stayed at its largest."""
    yield
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for threshold in (-1, -3):  # of trimming and of mapping, as glibc starts
            libc.mallopt(threshold, 2**17)
        libc.malloc_trim(0)


@pytest.fixture(autouse=True)
def graphs_as_traced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets graphs run as they were traced: a compiler takes seconds for each. Tests marked `inductor` go through it."""
    if request.node.get_closest_marker("inductor") is None:
        monkeypatch.setattr("torch._inductor.compile", lambda module, inputs, options: module)
        monkeypatch.setattr("ppvae.compile.compiled.build_headers", lambda: None)


@pytest.fixture(params=["traced", pytest.param("compiled", marks=[pytest.mark.inductor, pytest.mark.slow])])
def with_and_without_inductor(request: pytest.FixtureRequest) -> None:
    """Runs a test twice: with graphs as they were traced, and, among the slow tests, compiled."""


@pytest.fixture(scope="session")
def group() -> Iterator[Group]:
    """Processes that functions of tests run in side by side, see `tests/group.py`: they take seconds to start."""
    started = Group()
    yield started
    started.close()


@pytest.fixture
def figures_undrawn() -> Iterator[None]:
    """Lets figures be made and named, and not drawn, which takes most of the time of an example's short run."""
    with patch("matplotlib.figure.Figure.savefig"):
        yield


@pytest.fixture
def figures_drawn_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets them be drawn in the first case of a test alone."""
    with patch("matplotlib.figure.Figure.savefig") if any(request.node.callspec.indices.values()) else nullcontext():
        yield
