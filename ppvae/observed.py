"""What a model observes of its arguments, and what is said of those that do not fit it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import Independent

from ppvae.pair import Batch
from ppvae.traces import Site, same_values, sites, values_outside


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


def taken_as_given(trace: Trace, batch: Batch) -> Iterator[tuple[Site, int]]:
    """The sites of a model that observe an argument as it is, with the place of the argument."""
    for site in sites(trace).values():
        for i, tensor in enumerate(batch):
            if not site.is_drawn and same_values(site.value, tensor):
                yield site, i


def check_observed(
    trace: Trace, batch: Batch, whole: Batch | None, name: str = "data", *, masked: bool = False
) -> None:
    """Checks what a model observes as it is given: that it has a batch dim, is finite, and lies in the support.

    Args:
        trace: of the model.
        batch: what it was run on.
        whole: all data, of which that is a part; None where they are not known.
        name: of the argument.
        masked: whether the values of sites with a mask, which may leave out some, are checked too.

    Raises:
        ValueError: naming the argument and the site.
    """
    for site, i in taken_as_given(trace, batch):
        if site.plates and site.value.dim() > len(site.fn.shape()):
            raise ValueError(
                f"{name}[{i}] must have the shape of what site {site.name!r} draws, {tuple(site.fn.shape())}, got "
                f"{tuple(site.value.shape)}: more dims than these"
            )
        if site.plates and site.value.dim() <= site.event_dim:
            raise ValueError(
                f"{name}[{i}] must have a leading batch dim: site {site.name!r} has {site.event_dim} event dims, and "
                f"got shape {tuple(batch[i].shape)}, one datum; x[None] is a batch of one"
            )
        if site.is_masked and not masked:
            continue
        values = batch[i] if whole is None else whole[i]
        if bool((bad := ~values.isfinite()).any()):
            row = int(bad.reshape(len(values), -1).any(1).nonzero()[0])
            raise ValueError(
                f"{name}[{i}] holds NaN or infinite values, first in row {row}, and the pair observes them at site "
                f"{site.name!r}"
            )
        if said := values_outside(site, values, f"{name}[{i}]"):
            raise ValueError(said)


class OnlyDistributions(Messenger):
    """Checks that what the sample statements inside are given are distributions."""

    def _pyro_sample(self, msg: Any) -> None:
        if not callable(msg["fn"]) or isinstance(msg["fn"], Tensor | nn.Module):
            raise TypeError(
                f"pyro.sample({msg['name']!r}, ...) is given a {type(msg['fn']).__name__} in place of a distribution: "
                "a piece such as p_x_given_z must return one, e.g. ConditionalNormal(net)"
            )
