"""The temperature of a guide: one number of it that held-out data decide, whatever trained the rest.

A guide with one value for each datum gives a bound, and how far below log p(x) it lies nothing shows. At a temperature
τ it draws others too. Whatever τ is, importance sampling gives a lower bound on log p(x) in expectation: the best τ is
that at which the bound is highest.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ppvae._validate import check_count, check_number
from ppvae.evaluate.marginal import log_marginal
from ppvae.evaluate.psis import ParetoWarning

GOLDEN = (math.sqrt(5) - 1) / 2
"""The share of an interval that a step of the golden-section search keeps."""

PER_DECADE = 2
"""How many temperatures of each decade are tried first."""


def fit_temperature(
    pair: nn.Module,
    temperature: Tensor,
    *data: Any,
    num_samples: int = 100,
    least: float = 1e-3,
    most: float = 1e3,
    num_steps: int = 6,
    seed: int = 0,
) -> float:
    """Sets a number that a pair's guide depends on to where log p(x) of held-out data is estimated highest.

    Values from `least` to `most`, two each decade, are tried on the same random numbers, then a golden-section search
    goes on around the best of them.

    Args:
        pair: any model/guide pair.
        temperature: the number, a tensor of no dims that the guide reads, e.g. `vqvae.q_k_given_x.temperature`; it is
            written in place.
        data: the arguments of the pair, which it was not trained on.
        num_samples: importance samples per datum. With few, the best guide is one for few samples.
        least: the least value that is tried, above 0.
        most: the greatest.
        num_steps: of the golden-section search.
        seed: of the draws.

    Returns:
        The value, which `temperature` now holds.

    Raises:
        TypeError: where `temperature` is no tensor of one floating-point number.
        ValueError: where an option is out of its bounds, or the pair or the data break the contract.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ppvae
        >>> width = torch.tensor(1.0)
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, width))
        >>> tau = fit_temperature(ppvae.Pair(model, guide), width, torch.randn(20))
        >>> bool(0.3 < tau < 1.5), tau == float(width)  # the posterior has the scale 0.71
        (True, True)
    """
    if not (isinstance(temperature, Tensor) and temperature.is_floating_point() and temperature.dim() == 0):
        got = f"one of shape {tuple(temperature.shape)}, {temperature.dtype}" if isinstance(temperature, Tensor) else ""
        raise TypeError(f"temperature must be a tensor of one floating-point number, got {got or repr(temperature)}")
    check_count("num_samples", num_samples)
    check_count("num_steps", num_steps, at_least=0)
    check_number("least", least, above=0)
    check_number("most", most, above=least)
    before = temperature.detach().clone()
    bounds: dict[float, float] = {}

    def bound(at: float) -> float:
        if at not in bounds:
            _put(temperature, math.exp(at))
            with warnings.catch_warnings(
                action="ignore", category=ParetoWarning
            ):  # most guides that are tried are poor
                bounds[at] = log_marginal(pair, *data, num_samples=num_samples, seed=seed).mean()
        return bounds[at]

    try:
        best = _highest(bound, math.log(least), math.log(most), num_steps)
    except BaseException:
        _put(temperature, before)
        raise
    _put(temperature, math.exp(best))
    return float(temperature)


def _highest(bound: Any, low: float, high: float, num_steps: int) -> float:
    """Where a function is highest, on a grid and then between the neighbours of its best point."""
    size = 1 + math.ceil(PER_DECADE * (high - low) / math.log(10))
    grid = torch.linspace(low, high, size, dtype=torch.float64).tolist()
    best = max(range(size), key=lambda i: bound(grid[i]))
    tried = {grid[best]: bound(grid[best])}
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, size - 1)]
    for _ in range(num_steps):
        a, b = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        tried |= {a: bound(a), b: bound(b)}
        low, high = (low, b) if tried[a] > tried[b] else (a, high)
    return max(tried, key=tried.__getitem__)


@torch.no_grad()
def _put(temperature: Tensor, value: float | Tensor) -> None:
    temperature.copy_(torch.as_tensor(value))
