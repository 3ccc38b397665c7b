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

DIGITS = 1e-5 / torch.finfo(torch.float64).eps
"""The largest parts of an expanded exponent of which float64 keeps 1e-5 nats."""

ROWS = 2**22
"""The most elements of one tensor of differences."""


class NormalMixture(dist.MixtureSameFamily):
    r"""A mixture of K diagonal normals of batch shape ``()``, which scores values without a tensor ``(..., K, k)``.

    The exponents are expanded, so that all of them are one product of ``(..., 2k)`` with ``(2k, K)``:

    .. math:: \sum_i \Big(\frac{z_i - \mu_{ji}}{\sigma_{ji}}\Big)^2
        = \sum_i \frac{1}{\sigma_{ji}^2}\, z_i^2 - 2 \sum_i \frac{\mu_{ji}}{\sigma_{ji}^2}\, z_i
        + \sum_i \frac{\mu_{ji}^2}{\sigma_{ji}^2}

    The three parts may be large where they cancel, hence float64 inside, whatever the dtype of the values. Where even
    that has too few digits (components of scale 1e-6 at distances of 100) the differences are taken before they are
    squared, at the price of the tensor: each call decides by the size of the parts. A training step on a GPU takes
    the product whatever their size, so that it need not wait for the device.

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
        log_norm = scale.log().sum(-1) + 0.5 * dims * math.log(2 * math.pi)
        by_component = _exponents(z, loc, scale) + (self.mixture_distribution.logits.double() - log_norm)
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


def _exponents(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """−½ Σ ((z − μ_j) / σ_j)², (..., K)."""
    precision = scale.reciprocal().square()
    center = loc.mean(0).detach()  # the density is the same wherever the origin lies, and the sums are smaller
    moved, value = loc - center, z - center
    squares, constant = value.square(), (moved.square() * precision).sum(-1)
    waits = z.is_cuda and torch.is_grad_enabled()  # a step would, for the answer
    if not waits and _cancels(squares, constant, precision, center):
        return _explicit(z, loc, scale)
    return torch.cat([squares, value], -1) @ torch.cat([-0.5 * precision, moved * precision], -1).T - 0.5 * constant


@torch.no_grad()
def _cancels(squares: Tensor, constant: Tensor, precision: Tensor, center: Tensor) -> bool:
    """Whether some expanded exponent may be made of parts so large that too few digits of their sum are left."""
    if not squares.numel():
        return False
    parts = precision @ squares.reshape(-1, squares.shape[-1]).amax(0) + constant
    moved = (precision @ center.square()).sqrt()  # what moving the origin costs, for values within some scales
    return not bool((parts + 30 * moved).amax() < DIGITS)


def _explicit(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """The exponents from the differences themselves, some values at a time."""
    rows = z.reshape(-1, 1, z.shape[-1]).split(max(1, ROWS // loc.numel()))
    parts = [-0.5 * ((part - loc) / scale).square().sum(-1) for part in rows]
    return torch.cat(parts).reshape(*z.shape[:-1], len(loc))


def _base(components: Distribution) -> Any:
    """The distribution of single elements."""
    return components.base_dist if isinstance(components, Independent) else components
