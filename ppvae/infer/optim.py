"""Optimizers as one function from parameters to a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
"""From parameters to a torch optimizer, e.g. `partial(torch.optim.Adam, lr=1e-3)`."""


def one_optimizer(optim: Any) -> Any:
    """A plain `pyro.optim` object as one torch optimizer; any other as it is."""
    plain = type(optim) is PyroOptim and isinstance(optim.pt_optim_args, dict)
    if plain and not optim.pt_clip_args and not optim._state_waiting_to_be_consumed:
        return partial(optim.pt_optim_constructor, **optim.pt_optim_args)
    return optim
