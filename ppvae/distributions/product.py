"""The product of two normal distributions: what two sources say of one latent, each weighted by its precision."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor


def precision_weighted(p: TorchDistribution, q: TorchDistribution) -> TorchDistribution:
    r"""Returns the normalised product of two diagonal normal distributions.

    .. math:: \mathcal{N}(\mu, \sigma^2) \propto \mathcal{N}(\mu_p, \sigma_p^2)\, \mathcal{N}(\mu_q, \sigma_q^2), \qquad
        \sigma^{-2} = \sigma_p^{-2} + \sigma_q^{-2}, \quad
        \mu = \sigma^2 (\sigma_p^{-2} \mu_p + \sigma_q^{-2} \mu_q)

    It is never wider than either of the two.

    Args:
        p: A diagonal normal distribution, e.g. what a ``ConditionalNormal`` returns.
        q: Another one, of the same event shape; batch shapes broadcast.

    Returns:
        A diagonal normal distribution of that event shape.

    Raises:
        TypeError: If one of them is no diagonal normal distribution.
        ValueError: If the event shapes differ.

    References:
        Ladder Variational Autoencoders (Sønderby et al. 2016), arXiv 1602.02282, equations 19 and 20.

    Example:
        >>> p, q = dist.Normal(torch.zeros(3), 1.0).to_event(1), dist.Normal(torch.ones(3), 1.0).to_event(1)
        >>> precision_weighted(p, q).mean
        tensor([0.5000, 0.5000, 0.5000])
    """
    (p_loc, p_scale), (q_loc, q_scale) = _location_scale("p", p), _location_scale("q", q)
    if p.event_shape != q.event_shape:
        raise ValueError(f"p and q must have the same event shape, got {tuple(p.event_shape)}, {tuple(q.event_shape)}")
    # From the two scales alone, not from their reciprocals: no square of a small scale underflows.
    both = torch.hypot(p_scale, q_scale)
    of_p, of_q = q_scale / both, p_scale / both
    return dist.Normal(p_loc * of_p.square() + q_loc * of_q.square(), p_scale * of_p).to_event(len(p.event_shape))


def _location_scale(name: str, distribution: TorchDistribution) -> tuple[Tensor, Tensor]:
    base = distribution
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    if not isinstance(base, torch.distributions.Normal):
        raise TypeError(f"{name} must be a diagonal normal distribution, got {distribution}")
    return base.loc, base.scale
