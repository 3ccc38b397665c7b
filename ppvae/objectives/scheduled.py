"""Objectives with numbers that a schedule may move while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppvae._validate import check_count
from ppvae.objectives.base import Objective
from ppvae.objectives.schedule import Schedule, as_schedule

Value = float | Schedule
"""A number, or a function of the time in epochs, see `ppvae.objectives.schedule`."""


class ScheduledObjective(Objective):
    """An objective whose numbers are given as they are, or as schedules.

    What is a schedule moves in `ppvae.fit` alone: with an SVI of your own, call `set_time(epoch)` before its steps.

    Args:
        values: the numbers, those that are schedules included.
        num_particles: draws per datum and step.
        of_sites: the argument that they are, where their names are those of sites.

    Raises:
        TypeError: where one is of the wrong kind.
        ValueError: where one is negative or not finite.
    """

    def __init__(self, values: Mapping[str, Value], num_particles: int, *, of_sites: str | None = None) -> None:
        check_count("num_particles", num_particles)
        super().__init__(num_particles=num_particles)
        called = {name: name if of_sites is None else f"{of_sites}[{name!r}]" for name in values}
        self._schedules = {name: as_schedule(value, name=called[name]) for name, value in values.items()}
        self._values: dict[str, Any] = {  # a number stays one; a schedule's value is a tensor, updated in place
            name: torch.zeros(()) if callable(value) else float(value) for name, value in values.items()
        }
        self.set_time(0.0)

    def set_time(self, epoch: float, device: torch.device | None = None) -> None:
        """Sets the scheduled values to those at a time in epochs; `ppvae.fit` does it at every step.

        Args:
            epoch: the time.
            device: where the values are to lie.
        """
        for name, value in self._values.items():
            if isinstance(value, Tensor):
                if device is not None and value.device != device:
                    value = self._values[name] = value.to(device)
                value.fill_(self._schedules[name](epoch))
