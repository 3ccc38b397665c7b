"""Random numbers: streams that are functions of their seeds alone, and generators that are kept and restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator


def stream(seed: int, *key: int, device: torch.device | str = "cpu") -> Generator:
    """A fresh generator for one stream of a seed, which owes nothing to the global ones.

    Neighbouring seeds and keys are hashed apart: PyTorch's CPU generator keeps only 32 bits of its seed.

    Args:
        seed: the user's seed, at least 0.
        *key: which of the seed's streams, for instance an epoch.
        device: where the numbers will be drawn.
    """
    return Generator(device).manual_seed(seed_of(seed, *key))


def seed_of(seed: int, *key: int) -> int:
    """The seed of one stream of a seed, hashed: 64 bits."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def permutation(n: int, seed: int) -> torch.Tensor:
    """A permutation of `n` rows that stays the same across machines and releases: row numbers (n,), int64.

    It decides which data are held out, so it comes from NumPy's `RandomState`, whose streams NEP 19 froze.

    Args:
        n: number of rows.
        seed: the user's seed, at least 0.
    """
    return torch.from_numpy(np.random.RandomState(np.random.MT19937(seed)).permutation(n).astype(np.int64))


def get_rng(device: torch.device) -> dict[str, Any]:
    """The state of torch's global generators, of the CPU and of `device`."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_rng(state: dict[str, Any], device: torch.device | str = "cuda") -> None:
    """Puts back what `get_rng` read; on a GPU, to `device`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def forked_rng(device: torch.device, seed: int) -> Iterator[None]:
    """Starts the global generators of the CPU and of `device` from a seed; they come back as they were.

    Those of other devices are left alone: `torch.manual_seed` would start them all anew.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


@dataclass(frozen=True)
class RandomState:
    """The generators that training draws from: torch's global ones, and those of its data.

    Args:
        device: where training runs.
        of_the_data: those that the data draw from, see `ppvae.data.Source.generators`.
    """

    device: torch.device
    of_the_data: Sequence[Generator] = ()

    def get(self) -> dict[str, Any]:
        """The state of every generator."""
        return {**get_rng(self.device), "data": [generator.get_state() for generator in self.of_the_data]}

    def set(self, state: dict[str, Any]) -> None:
        """Puts back what `get` read."""
        set_rng(state, self.device)
        for generator, own in zip(self.of_the_data, state["data"], strict=True):
            generator.set_state(own)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Every generator comes back as it was: looking at the data must not change their order."""
        before = self.get()
        try:
            yield
        finally:
            self.set(before)


@contextmanager
def kept_rng(device: torch.device) -> Iterator[None]:
    """What is drawn inside leaves the generators of the CPU and of the device as they are."""
    state = get_rng(device)
    yield
    set_rng(state, device)
