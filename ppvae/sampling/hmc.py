"""Hamiltonian Monte Carlo for many chains at once (Neal 2011, "MCMC using Hamiltonian dynamics", 1206.1901)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppvae.sampling.annealed_path import Point

JITTER = 0.5
"""Each trajectory's step is up to so much shorter or longer: all of one length may lead back to where they began."""


def transition(
    density: Callable[[Tensor], Point], point: Point, beta: float, step: Tensor, num_leapfrog: int
) -> tuple[Point, Tensor]:
    """One move of every chain that leaves π_β as it is.

    The momentum is drawn anew, followed for some leapfrog steps, and where they led is accepted or not, for each chain
    and datum on its own. Where the densities end in NaN it is not.

    Args:
        density: what is known of the path at positions (s, n, k).
        point: where the chains are.
        beta: 0 < β < 1.
        step: the leapfrog step in each direction, broadcasting over (s, n, k).
        num_leapfrog: leapfrog steps.

    Returns:
        Where the chains are then, and the probability with which each accepted, (s, n).
    """
    momentum = torch.randn_like(point.position)
    step = step * (1 + JITTER * (2 * torch.rand_like(point.log_start) - 1)).unsqueeze(-1)
    proposal, kinetic = point, (momentum**2).sum(-1) / 2
    momentum = momentum + step / 2 * point.gradient(beta)
    for i in range(num_leapfrog):
        proposal = density(proposal.position + step * momentum)
        kick = step if i < num_leapfrog - 1 else step / 2
        momentum = momentum + kick * proposal.gradient(beta)
    log_ratio = proposal.log_prob(beta) - point.log_prob(beta) + kinetic - (momentum**2).sum(-1) / 2
    probability = log_ratio.clamp(max=0).exp().nan_to_num(0.0)
    return proposal.where(torch.rand_like(probability) < probability, point), probability
