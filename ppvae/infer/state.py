"""The state of training that a checkpoint holds besides the weights: how far it came, and the random generators."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm


@dataclass
class Progress:
    """How far training has come; all of it goes into a checkpoint.

    Attributes:
        epoch: epochs finished.
        step: steps finished in the running epoch.
        sums: of each term over the running epoch, and of the data ("data").
        history: the finished epochs.
        best: the best validation ELBO so far.
        best_epoch: the epoch that reached it.
        epoch_rng: the random state with which the running epoch began.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int | None = None
    epoch_rng: dict[str, Any] = field(default_factory=dict)

    def time(self, step: int, steps_per_epoch: int | None) -> float:
        """The time in epochs at a step, for schedules; whole where the length of an epoch is not known."""
        return self.epoch + (step / steps_per_epoch if steps_per_epoch else 0.0)

    def add(self, name: str, value: float) -> None:
        """Adds to the sum `name`: one value at a time, so that an interruption does not change the rounding."""
        self.sums[name] = self.sums.get(name, 0.0) + value


def progress_bar(progress: Progress, steps_per_epoch: int | None, epochs: int, *, show: bool) -> Any:
    """A bar over the steps of a run, from where it stands."""
    length = steps_per_epoch or 0
    done = progress.epoch * length + progress.step
    often = 0.2 if sys.stderr.isatty() else 30.0  # a log file wants few lines
    options: dict[str, Any] = {"disable": not show, "dynamic_ncols": True, "mininterval": often}
    return tqdm(total=length * epochs or None, initial=done, unit="step", **options)


@dataclass(frozen=True)
class RandomState:
    """The generators that training draws from: torch's global ones, and those of a `DataLoader`.

    Args:
        device: where training runs.
        data: the training data.
    """

    device: torch.device
    data: Any

    def get(self) -> dict[str, Any]:
        """The state of every generator."""
        return {**get_rng(self.device), "data": [generator.get_state() for generator in self._of_the_data()]}

    def set(self, state: dict[str, Any]) -> None:
        """Puts back what `get` read."""
        set_rng(state, self.device)
        for generator, own in zip(self._of_the_data(), state["data"], strict=True):
            generator.set_state(own)

    @contextmanager
    def forked(self, seed: int) -> Iterator[None]:
        """Starts the global generators from `seed`; they come back as they were, those of other devices included."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU
            if self.device.type == "cuda":
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            yield

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Every generator comes back as it was: looking at the data must not change their order."""
        before = self.get()
        try:
            yield
        finally:
            self.set(before)

    def _of_the_data(self) -> Sequence[Generator]:
        """The generators that a `DataLoader` or its sampler was given."""
        holders = (self.data, getattr(self.data, "sampler", None))
        own = [getattr(holder, "generator", None) for holder in holders]
        return list({id(g): g for g in own if isinstance(g, Generator)}.values())


def get_rng(device: torch.device) -> dict[str, Any]:
    """The state of torch's global generators, of the CPU and of `device`."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_rng(state: dict[str, Any], device: torch.device | str = "cuda") -> None:
    """Puts back what `get_rng` read; on a GPU, to `device`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def modes_kept(pair: nn.Module) -> Iterator[None]:
    """Every module comes back in the mode, training or not, that it was in."""
    training = {module: module.training for module in pair.modules()}
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def to_cpu(state: Any) -> Any:
    """A copy of nested state with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(to_cpu(value) for value in state)
    return state
