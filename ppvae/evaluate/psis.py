"""How far importance weights can be trusted: the tail of their distribution, and the bound against their number."""

from __future__ import annotations

import math
import warnings
from typing import Any

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


class ParetoWarning(UserWarning):
    """The importance weights of some data are too heavy-tailed for their log p(x) to be trusted."""


def import_arviz() -> Any:
    """The module `arviz`, without the notice of its next version that it gives once a day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing a major refactor", FutureWarning)
        import arviz
    return arviz


def pareto_k(log_weight: Tensor) -> Tensor:
    """Estimates the shape k of the generalized Pareto tail of each datum's weights by ArviZ's `psislw`.

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

    Example:
        >>> light, heavy = torch.randn(5000, 1), 5 * torch.randn(5000, 1)  # log-normal weights
        >>> (pareto_k(light) < 0.7).item(), (pareto_k(heavy) > 0.7).item()
        (True, True)
    """
    import numpy as np

    _check_weights(log_weight)
    s, n = log_weight.shape
    if s < PARETO_SAMPLES:
        return torch.full((n,), math.nan, dtype=torch.float64)
    log_weight = log_weight.detach().double().cpu()
    with np.errstate(all="ignore"):  # tails of equal weights, weights below the smallest number, and none at all
        _, k = import_arviz().stats.psislw(log_weight.T.contiguous().numpy())
    fit = torch.from_numpy(np.asarray(k, dtype=np.float64))
    share = _tail_share(log_weight)
    no_fit = torch.where(share < NEGLIGIBLE, -math.inf, math.inf)
    return torch.where(fit.isfinite() & ~(share < ROUNDING), fit, no_fit)


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
