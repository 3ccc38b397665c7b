"""Schedules: functions of the epoch, for the KL weight and for the learning rate alike.

A schedule is any callable that takes the time in epochs (a float: 2.5 is the middle of the third) and returns
a value. It has no state, so a resumed run continues it by knowing the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from ppvae._validate import check_count, check_number, check_takes

Schedule = Callable[[float], float]
"""From the time in epochs to a value."""


@dataclass(frozen=True)
class Linear:
    """From `start` to `end` in a straight line over `epochs`, then constant (Bowman et al. 2016, 1511.06349).

    Example:
        >>> Linear(epochs=10)(5.0)
        0.5
    """

    epochs: float
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, above=0)
        _check_ends(self.start, self.end)

    def __call__(self, epoch: float) -> float:
        """The value at time `epoch`."""
        return self.start + (self.end - self.start) * min(epoch / self.epochs, 1.0)


@dataclass(frozen=True)
class Sigmoid:
    """β(t) = end · sigmoid((t − midpoint) / width) (Bowman et al. 2016, arXiv 1511.06349).

    Example:
        >>> Sigmoid(midpoint=10, width=2)(10.0)
        0.5
    """

    midpoint: float
    width: float
    end: float = 1.0

    def __post_init__(self) -> None:
        check_number("midpoint", self.midpoint)
        check_number("width", self.width, above=0)
        check_number("end", self.end)

    def __call__(self, epoch: float) -> float:
        """The value at time `epoch`."""
        return self.end * 0.5 * (1.0 + math.tanh(0.5 * (epoch - self.midpoint) / self.width))


@dataclass(frozen=True)
class Cyclical:
    """Every `period` epochs: from `start` to `end` over the first `ramp` of it, then constant.

    Fu et al. 2019, "Cyclical annealing schedule: a simple approach to mitigating KL vanishing" (1903.10145).

    Example:
        >>> Cyclical(period=10, ramp=0.5)(12.5)
        0.5
    """

    period: float
    ramp: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_number("period", self.period, above=0)
        check_number("ramp", self.ramp, above=0, at_most=1)
        _check_ends(self.start, self.end)

    def __call__(self, epoch: float) -> float:
        """The value at time `epoch`."""
        phase = (epoch % self.period) / (self.period * self.ramp)
        return self.start + (self.end - self.start) * min(phase, 1.0)


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine over `epochs` (Loshchilov & Hutter 2017, arXiv 1608.03983).

    Example:
        >>> round(Cosine(epochs=10, start=1e-3)(5.0), 6)
        0.0005
    """

    epochs: float
    start: float
    end: float = 0.0

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, above=0)
        _check_ends(self.start, self.end)

    def __call__(self, epoch: float) -> float:
        """The value at time `epoch`."""
        phase = min(epoch / self.epochs, 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * phase))


@dataclass(frozen=True)
class Stages:
    """Constant in each stage, which is `growth` times as long as the one before; from `start` down by equal factors.

    The defaults are the learning rate of Burda et al. 2016 (arXiv 1509.00519): stages of 3^i epochs with start ·
    10^(−i/7), i = 0 … 7, in all 3280.

    Args:
        epochs: of all stages together; the last one goes on.
        start: the value in the first stage.
        num_stages: how many there are, at least 2.
        growth: how many times as long as the one before each is.
        fall: `start` divided by the value in the last stage.

    Example:
        >>> lr = Stages(epochs=3280, start=1e-3)
        >>> lr(0.5), lr(3279.5)
        (0.001, 0.0001)
    """

    epochs: float
    start: float
    num_stages: int = 8
    growth: float = 3.0
    fall: float = 10.0

    def __post_init__(self) -> None:
        check_number("epochs", self.epochs, above=0)
        check_number("start", self.start)
        check_number("growth", self.growth, above=0)
        check_number("fall", self.fall, above=0)
        check_count("num_stages", self.num_stages, at_least=2)

    def __call__(self, epoch: float) -> float:
        """The value at time `epoch`."""
        ends = list(accumulate(self.growth**i for i in range(self.num_stages)))
        stage = sum(epoch * ends[-1] >= self.epochs * end for end in ends[:-1])
        return self.start * self.fall ** (-stage / (self.num_stages - 1))


def _check_ends(start: float, end: float) -> None:
    check_number("start", start)
    check_number("end", end)


@dataclass(frozen=True)
class Checked:
    """A schedule of a user's, each of whose values is checked to be a finite number >= 0.

    Args:
        name: of the argument, for the message.
        schedule: any function of the epoch.
    """

    name: str
    schedule: Schedule

    def __call__(self, epoch: float) -> float:
        """The value at time `epoch`."""
        given = self.schedule(epoch)
        try:
            value = math.nan if isinstance(given, str) else float(given)
        except (TypeError, ValueError, RuntimeError):
            value = math.nan
        if not 0 <= value < math.inf:
            raise ValueError(f"{self.name} must give finite numbers >= 0, got {given!r} at epoch {epoch:g}")
        return value


def as_schedule(value: float | Schedule, *, name: str) -> Schedule:
    """A number as the constant schedule; a callable with its values checked.

    Raises:
        TypeError: where `value` is neither, or a callable takes no epoch.
        ValueError: where it is negative or not finite, of a callable at the start.
    """
    if callable(value):
        check_takes(name, value, "epoch")
        schedule = Checked(name, value)
        schedule(0.0)
        return schedule
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number or a function of the epoch, got {type(value).__name__}")
    constant = check_number(name, value, at_least=0)
    return lambda epoch: constant
