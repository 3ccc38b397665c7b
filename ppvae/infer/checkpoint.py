"""The state of training that a checkpoint holds besides the weights: how far it came, and the random generators."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm


@dataclass
class Progress:
    """How far training has come; all of it goes into a checkpoint.

    Attributes:
        epoch: epochs finished.
        step: steps finished in the running epoch.
        sums: of each term over the running epoch, and of the data ("data").
        counts: the data whose minibatches had each of these terms: not every one needs to have every site.
        history: the finished epochs.
        best: the best validation ELBO so far.
        best_epoch: the epoch that reached it.
        epoch_rng: the random state with which the running epoch began.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int | None = None
    epoch_rng: dict[str, Any] = field(default_factory=dict)

    def time(self, step: int, steps_per_epoch: int | None) -> float:
        """The time in epochs at a step, for schedules; whole where the length of an epoch is not known."""
        return self.epoch + (step / steps_per_epoch if steps_per_epoch else 0.0)

    @classmethod
    def of(cls, state: dict[str, Any]) -> Progress:
        """What a checkpoint holds of it; one of an older version holds no counts, since all terms were everywhere."""
        return cls(**{"counts": dict.fromkeys(state["sums"], state["sums"].get("data", 0.0)), **state})

    def add_step(self, n: int, terms: dict[str, float]) -> None:
        """Adds the terms of a step on n data: one step at a time, so that an interruption changes no rounding."""
        for name, value in {"data": n, **terms}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0.0) + n

    def means(self) -> dict[str, float]:
        """The mean of each term over the data of the running epoch that have it."""
        return {name: total / self.counts[name] for name, total in self.sums.items() if name != "data"}


def progress_bar(progress: Progress, steps_per_epoch: int | None, epochs: int, *, show: bool) -> Any:
    """A bar over the steps of a run, from where it stands."""
    length = steps_per_epoch or 0
    done = progress.epoch * length + progress.step
    often = 0.2 if sys.stderr.isatty() else 30.0  # a log file wants few lines
    options: dict[str, Any] = {"disable": not show, "dynamic_ncols": True, "mininterval": often}
    return tqdm(total=length * epochs or None, initial=done, unit="step", **options)


def to_cpu(state: Any) -> Any:
    """A copy of nested state with its tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: to_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(to_cpu(value) for value in state)
    return state
