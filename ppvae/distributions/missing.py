"""Likelihoods of which a part of the elements was observed."""

from __future__ import annotations

from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent


def of_observed(fn: TorchDistribution, observed: Tensor) -> TorchDistribution:
    """The same distribution, in whose log-probability the elements that were not observed do not count.

    Of independent elements that is log p of those observed, exactly.

    Args:
        fn: of independent elements, as `ConditionalNormal`, `ConditionalBernoulli` and most pieces return.
        observed: which elements were, boolean, of the event shape and leading dims that broadcast.

    Raises:
        TypeError: where the elements are not independent, so that none can be left out.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> fn = of_observed(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.tensor([True, False]))
        >>> fn.log_prob(torch.tensor([0.0, 1e6]))
        tensor(-0.9189)
    """
    if not isinstance(fn, Independent):
        raise TypeError(
            f"the likelihood must be of independent elements, of which some are left out, got {type(fn).__name__}"
        )
    if fn.base_dist.event_shape:
        raise TypeError(f"the elements of the likelihood must be single numbers, got event {fn.base_dist.event_shape}")
    return fn.base_dist.mask(observed).to_event(fn.reinterpreted_batch_ndims)
