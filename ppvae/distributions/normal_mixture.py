"""The density of a mixture of many diagonal normals, at the price of one matrix product."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal


class NormalMixture(dist.MixtureSameFamily):
    r"""A mixture of K diagonal normals of batch shape ``()``, which scores values without a tensor ``(..., K, k)``.

    The exponents are expanded, so that all of them are one product of ``(..., 2k)`` with ``(2k, K)``:

    .. math:: \sum_i \Big(\frac{z_i - \mu_{ji}}{\sigma_{ji}}\Big)^2
        = \sum_i \frac{1}{\sigma_{ji}^2}\, z_i^2 - 2 \sum_i \frac{\mu_{ji}}{\sigma_{ji}^2}\, z_i
        + \sum_i \frac{\mu_{ji}^2}{\sigma_{ji}^2}

    The three parts may be large where they cancel, hence float64 inside, whatever the dtype of the values.

    Args:
        logits: Of the weights, unnormalised, ``(K,)``.
        components: ``Normal``, all its dimensions but the first in the event: batch shape ``(K,)``.

    Example:
        >>> p_z = NormalMixture(torch.zeros(500), dist.Normal(torch.randn(500, 40), 1.0).to_event(1))
        >>> p_z.log_prob(torch.zeros(5, 128, 40)).shape
        torch.Size([5, 128])
    """

    def __init__(self, logits: Tensor, components: Distribution) -> None:
        super().__init__(dist.Categorical(logits=logits), components)

    @staticmethod
    def takes(components: Distribution) -> bool:
        """Whether these are diagonal normals, one dimension of them in the batch."""
        return isinstance(_base(components), Normal) and len(components.batch_shape) == 1

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns log p(z), ``(...)``, of values ``(..., *event_shape)``."""
        if self._validate_args:
            self._validate_sample(value)
        normal, dims = _base(self.component_distribution), self.event_shape.numel()
        loc, scale = (t.reshape(-1, dims).double() for t in (normal.loc, normal.scale))
        z = value.reshape(*value.shape[: value.dim() - len(self.event_shape)], dims).double()
        center = loc.mean(0).detach()  # the density is the same wherever the origin lies, and the sums are smaller
        loc, z = loc - center, z - center
        precision = scale.reciprocal().square()
        log_norm = scale.log().sum(-1) + 0.5 * dims * math.log(2 * math.pi)
        constant = self.mixture_distribution.logits.double() - log_norm - 0.5 * (loc.square() * precision).sum(-1)
        by_component = torch.cat([z.square(), z], -1) @ torch.cat([-0.5 * precision, loc * precision], -1).T + constant
        return by_component.logsumexp(-1).to(torch.promote_types(value.dtype, normal.loc.dtype))

    def expand(self, batch_shape: Any, _instance: Any = None) -> ExpandedDistribution:
        """Returns the same distribution for a whole batch, scored as one."""
        return _Expanded(self, torch.Size(batch_shape))


class _Expanded(ExpandedDistribution):
    """Like Pyro's, whose `expand` changes the object itself, but for that."""

    def __init__(self, base: dist.TorchDistribution, batch_shape: torch.Size) -> None:
        super().__init__(base)
        super().expand(batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ExpandedDistribution:
        """Returns another one."""
        return ExpandedDistribution.expand(copy.copy(self), torch.Size(batch_shape))


def _base(components: Distribution) -> Any:
    """The distribution of single elements."""
    return components.base_dist if isinstance(components, Independent) else components
