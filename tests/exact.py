"""What references are made of: a pair, its data, and log p(x) in closed form or by quadrature."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

N = 11
"""Data of each reference: more than the trial runs of the estimators take, and no multiple of them."""


@dataclass(frozen=True)
class Reference:
    """A pair, its data, log p of each datum (n,), and how the estimators have to run it."""

    pair: nn.Module
    data: tuple[Any, ...]
    log_prob: Tensor
    broadcasts: bool = True


def quadrature(log_joint: Callable[[Tensor], Tensor], *, low: float = -12.0, high: float = 12.0) -> Tensor:
    """Log ∫ exp(log_joint(z)) dz by the trapezoid rule, exact to rounding for smooth densities on the line.

    Args:
        log_joint: from points (m, 1) to log p(x, z), shape (m, n).
        low: where the integral begins.
        high: where it ends.
    """
    z = torch.linspace(low, high, 4001, dtype=torch.float64)
    return torch.logsumexp(log_joint(z.unsqueeze(-1)), 0) + math.log(float(z[1] - z[0]))


def diagonal(loc: Tensor, covariance: Tensor, inflation: float = 1.3) -> dist.TorchDistribution:
    """A diagonal normal around `loc`, wider than a normal of this covariance."""
    return dist.Normal(loc, inflation * covariance.diagonal().sqrt()).to_event(1)


def gaussian(x: Tensor, covariance: Tensor, mean: Tensor | float = 0.0) -> Tensor:
    """Log N(x; mean, covariance) in float64."""
    loc = torch.zeros(x.shape[-1], dtype=torch.float64) + mean
    return dist.MultivariateNormal(loc, covariance.double()).log_prob(x.double())
