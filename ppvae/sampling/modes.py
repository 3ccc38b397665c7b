"""Modes of log p(x, u): a search that never gets worse, from several starts, and which of its ends differ."""

from __future__ import annotations

import torch
from torch import Tensor

from ppvae.sampling.log_density import LogDensity
from ppvae.sampling.posterior_draws import PosteriorSampler

STEPS = 15
"""Gradients from each start. What is left of the way the fit goes on its own."""
DIP = 1.0
"""How many nats log p(x, u) must fall between two ends of a search for these to be different modes."""
MAX_MODES = 3
"""The most that are kept of a datum."""


def starts(density: LogDensity, part: PosteriorSampler, draws: Tensor, unit: Tensor) -> Tensor:
    """Where to search from, (4, n, k): the mean of draws, the best one, and two good ones far from it and each other.

    Args:
        density: of the pair.
        part: n data.
        draws: of each, (s, n, k).
        unit: their scale, (n, k), in which distance is measured.
    """
    score = density.log_joint(part, draws).nan_to_num(-torch.inf, -torch.inf)
    order = score.argsort(0, descending=True)[: max(1, len(draws) // 2)]
    good = draws.gather(0, order.unsqueeze(-1).expand(-1, -1, draws.shape[-1])) / unit
    chosen = [good[0]]
    for _ in range(2):
        distance = torch.stack([(good - other).square().sum(-1) for other in chosen]).amin(0)
        chosen.append(good[distance.argmax(0), torch.arange(good.shape[1], device=good.device)])
    return torch.stack([draws.mean(0), *(u * unit for u in chosen)])


def search(density: LogDensity, part: PosteriorSampler, u: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Climbs log p(x, u) from each start by gradients with the steps of Barzilai and Borwein, and keeps what is higher.

    Args:
        density: of the pair.
        part: n data.
        u: starts, (j, n, k).
        unit: the scale of each coordinate, (n, k).

    Returns:
        Where each ended, (j, n, k), and log p(x, u) there, (j, n).

    References:
        Two-point step size gradient methods (Barzilai & Borwein 1988), IMA Journal of Numerical Analysis 8.
    """
    value, gradient = density.gradient(part, u)
    value, slope = value.nan_to_num(-torch.inf, -torch.inf, -torch.inf), gradient * unit
    length = 1 / slope.norm(dim=-1, keepdim=True).clamp_min(1.0)
    for _ in range(STEPS):
        step = length * slope
        value_there, gradient = density.gradient(part, u + step * unit)
        slope_there = gradient * unit
        better = (value_there > value).unsqueeze(-1)  # of NaN it is not
        bend = -(step * (slope_there - slope)).sum(-1, keepdim=True)
        suggested = step.square().sum(-1, keepdim=True) / bend
        curved = (bend > 0) & suggested.isfinite()
        length = torch.where(better, torch.where(curved, suggested, 2 * length), length / 4)
        u = torch.where(better, u + step * unit, u)
        value = torch.where(better.squeeze(-1), value_there, value)
        slope = torch.where(better, slope_there, slope)
    return u, value


def distinct(density: LogDensity, part: PosteriorSampler, u: Tensor, value: Tensor) -> Tensor:
    """Which ends of a search are modes of their own, (j, n): the best, and those that a dip parts from the better ones.

    Args:
        density: of the pair.
        part: n data.
        u: the ends, (j, n, k), the best first.
        value: log p(x, u) there, (j, n).
    """
    keep = torch.zeros_like(value, dtype=torch.bool)
    keep[0] = True
    for i in range(1, len(u)):
        between = torch.cat([torch.lerp(u[:i], u[i], t) for t in (0.25, 0.5, 0.75)])
        lowest = density.log_joint(part, between).unflatten(0, (3, i)).amin(0).nan_to_num(-torch.inf)
        parted = lowest < torch.minimum(value[:i], value[i]) - DIP
        keep[i] = (parted | ~keep[:i]).all(0) & (keep.sum(0) < MAX_MODES)
    return keep
