"""How far importance weights can be trusted: the tail of their distribution, and the bound against their number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppvae._validate import check_tensor

PARETO_SAMPLES = 100
"""Samples from which k̂ is estimated: of fewer, its tail would be of less than 20."""
PARETO_GOOD = 0.7
"""The largest k̂ with which an estimate and its standard error can be trusted (Vehtari et al. 2024)."""
ROUNDING = 1e-5
"""Share of an estimate that the tail of weights may have which differ by the rounding of float32 alone."""
NEGLIGIBLE = 0.01
"""Share of an estimate that weights too few for a fit may add to it and still be harmless: 0.01 nats."""
PRIOR_COUNT = 10
"""Data that the prior of k at 1/2 counts as (Vehtari et al. 2024, appendix C)."""
BLOCK = 64
"""Data of which the tails are fitted at once."""


class ParetoWarning(UserWarning):
    """The importance weights of some data are too heavy-tailed for their log p(x) to be trusted."""


def pareto_k(log_weight: Tensor) -> Tensor:
    """Estimates the shape k of the generalized Pareto tail of each datum's weights, as ArviZ's `psislw` does.

    The weights have about 1/k finite moments: up to 0.5 the variance of their mean is finite and the central limit
    theorem holds; beyond 0.7 no number of samples that could be drawn makes the mean or its standard error reliable.

    Args:
        log_weight: log importance weights, shape (s, n), nats; −inf is a weight of zero.

    Returns:
        k̂ of shape (n,), float64 on the CPU. NaN for less than `PARETO_SAMPLES` samples. Where fewer than five weights
        lie above the threshold of the tail, or they are above it by rounding alone, there is nothing to fit: −inf where
        they add less than `NEGLIGIBLE` to the estimate (all weights equal, as with an exact posterior; a discrete
        latent of few values), else +inf (a few weights outweigh all others, or all are zero).

    References:
        Pareto smoothed importance sampling (Vehtari et al. 2024), arXiv 1507.02646.
        A new and efficient estimation method for the generalized Pareto distribution (Zhang & Stephens 2009),
        Technometrics 51.

    Example:
        >>> light, heavy = torch.randn(5000, 1), 5 * torch.randn(5000, 1)  # log-normal weights
        >>> (pareto_k(light) < 0.7).item(), (pareto_k(heavy) > 0.7).item()
        (True, True)
    """
    _check_weights(log_weight)
    s, n = log_weight.shape
    if s < PARETO_SAMPLES:
        return torch.full((n,), math.nan, dtype=torch.float64)
    log_weight = log_weight.detach().double().cpu()
    fit = torch.cat([_shape_of_tail(block) for block in log_weight.split(BLOCK, 1)])
    share = _tail_share(log_weight)
    no_fit = torch.where(share < NEGLIGIBLE, -math.inf, math.inf)
    return torch.where(fit.isfinite() & ~(share < ROUNDING), fit, no_fit)


def _shape_of_tail(log_weight: Tensor) -> Tensor:
    """The shape k of the tail of each datum's weights, (n,): NaN where less than five lie in it."""
    s = len(log_weight)
    top = (log_weight - log_weight.amax(0)).T.topk(math.ceil(min(s / 5, 3 * math.sqrt(s))) + 1).values
    threshold = top[:, -1:].clamp(min=math.log(torch.finfo(torch.float64).tiny))
    inside = top[:, :-1] > threshold
    excess = torch.where(inside, top[:, :-1].exp() - threshold.exp(), 0)  # falling, (n, m)
    return torch.where(inside.sum(-1) > 4, _generalized_pareto_shape(excess, inside), math.nan)


def _generalized_pareto_shape(excess: Tensor, inside: Tensor) -> Tensor:
    """The shape k of generalized Pareto variables: its posterior mean, with a weak prior at 1/2.

    Args:
        excess: the variables of each row in falling order, (n, m), zero where there are fewer.
        inside: where they are, (n, m).

    Returns:
        k of shape (n,).
    """
    m = inside.sum(-1, keepdim=True)
    quartile = excess.gather(1, (m - (m / 4 + 0.5).long()).clamp(max=excess.shape[1] - 1))
    size = 30 + m.sqrt().long()
    i = torch.arange(1, int(size.max()) + 1, dtype=torch.float64)
    b = (1 - (size / (i - 0.5)).sqrt()) / (3 * quartile) + 1 / excess[:, :1]  # candidates of −k / σ, (n, g)
    k = torch.log1p(-b.unsqueeze(-1) * excess.unsqueeze(1)).sum(-1) / m  # the likeliest k of each; zeros add nothing
    log_likelihood = m * ((-b / k).log() - k - 1)
    weight = torch.where(i <= size, log_likelihood, -math.inf).softmax(-1)
    weight = torch.where(weight >= 10 * torch.finfo(torch.float64).eps, weight, 0)
    mean = (torch.where(weight > 0, b, 0) * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True)
    of_mean = torch.log1p(-mean * excess).sum(-1, keepdim=True) / m
    return ((m * of_mean + PRIOR_COUNT * 0.5) / (m + PRIOR_COUNT)).squeeze(-1)


def num_unreliable(k: Tensor) -> int:
    """How many data have k̂ > 0.7, k̂ of any shape; NaN, of a method without one, is not."""
    return int((k > PARETO_GOOD).sum())


def k_in_words(k: Tensor, num_samples: int, cause: str) -> str:
    """What k̂ (n,) of so many samples says of an estimate, and why it is high where it is.

    Example:
        >>> k_in_words(torch.tensor([0.2, 0.9]), 1000, "the guide is too narrow")
        'k̂ > 0.7 for 1 of 2 data, most 0.90: the guide is too narrow'
    """
    if num_samples < PARETO_SAMPLES:
        return f"no k̂, which takes at least {PARETO_SAMPLES} samples"
    bad, most = num_unreliable(k), float(k.max())
    if not bad:
        return f"k̂ ≤ {PARETO_GOOD} for all data, most {most:.2f}"
    return f"k̂ > {PARETO_GOOD} for {bad} of {len(k)} data, most {most:.2f}: {cause}"


def _check_weights(log_weight: Tensor) -> None:
    """Checks that these are log-weights: a number, maybe infinite, for each sample of each datum."""
    check_tensor("log_weight", log_weight)
    if log_weight.dim() != 2 or not log_weight.numel():
        raise ValueError(f"log_weight must have shape (s, n), each at least 1, got {tuple(log_weight.shape)}")
    if bool(log_weight.isnan().any()):
        raise ValueError(f"log_weight must hold numbers, got {int(log_weight.isnan().sum())} NaN")


def _tail_share(log_weight: Tensor) -> Tensor:
    """The share of the mean weight that lies above the threshold of PSIS's tail, (n,)."""
    s = len(log_weight)
    weight = (log_weight - log_weight.amax(0)).exp()
    threshold = weight.topk(math.ceil(min(s / 5, 3 * math.sqrt(s))) + 1, 0).values[-1]
    return (weight - threshold).clamp_min(0).sum(0) / weight.sum(0)


def bound_curve(log_weight: Tensor) -> dict[int, Tensor]:
    """The bound E[log (1/K) Σ w] for K = 1, 2, 5, 10, 20, 50, ... up to s, and s itself, from the s weights drawn.

    Each is the mean over the disjoint groups of K samples, so it is unbiased for the bound of K samples; that of s is
    log of the mean weight, the estimate itself.

    Args:
        log_weight: log importance weights, shape (s, n), nats.

    Returns:
        The bounds by K, in rising order, each of shape (n,), nats.

    References:
        Importance weighted autoencoders (Burda et al. 2016), arXiv 1509.00519.

    Example:
        >>> list(bound_curve(torch.randn(120, 3)))
        [1, 2, 5, 10, 20, 50, 100, 120]
    """
    _check_weights(log_weight)
    s, size, groups, curve = len(log_weight), 1, log_weight, {}
    while size <= s:  # `groups` holds the log mean weights of the groups of `size` = 10^i samples
        for factor in (1, 2, 5):
            if factor * size <= s:
                curve[factor * size] = _log_mean_weight(groups, factor).mean(0)
        groups, size = _log_mean_weight(groups, 10), 10 * size
    curve[s] = log_weight.logsumexp(0) - math.log(s)
    return curve


def _log_mean_weight(log_weight: Tensor, size: int) -> Tensor:
    """Log of the mean weight of each whole group of `size`, shape (s // size, n)."""
    groups = len(log_weight) // size
    return log_weight[: groups * size].unflatten(0, (groups, size)).logsumexp(1) - math.log(size)
