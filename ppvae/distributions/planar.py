"""The planar flow with an inverse, which Pyro's has not."""

from functools import partial
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor, nn
from torch.distributions import constraints

BISECTIONS = 30


class InvertiblePlanar(ConditionalTransformModule):
    r"""The planar transform given a context, which scores any value and not only its own draws.

    .. math:: y = x + \hat u \tanh(w^\top x + b), \qquad w^\top \hat u > -1

    Args:
        net: A module from the context to b, u and w, of sizes 1, k and k.

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed 2015), arXiv 1505.05770.

    Example:
        >>> from pyro.nn import DenseNN
        >>> transform = InvertiblePlanar(DenseNN(3, [8], [1, 2, 2])).condition(torch.ones(3))
        >>> y = torch.tensor([0.3, -0.5])
        >>> torch.allclose(transform(transform.inv(y)), y)
        True
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def condition(self, context: Tensor) -> ConditionedPlanar:
        """Returns the transform for a context ``(..., c)``, which is kept with its last value."""
        return _InvertiblePlanar(partial(self.net, context))


class _InvertiblePlanar(ConditionedPlanar):
    """Adds the inverse: with a = wᵀx + b, wᵀy + b = a + wᵀû tanh(a), which grows with a."""

    def _inverse(self, y: Tensor) -> Tensor:
        bias, u, w = self._params()
        u_hat = self.u_hat(u, w)
        slope = (w * u_hat).sum(-1, keepdim=True)
        target = (w * y).sum(-1, keepdim=True) + bias
        a = _bisect(slope.detach(), target.detach())
        # A step of Newton's from the solution gives it the gradient of the implicit function.
        tanh = a.tanh()
        a = a - (a + slope * tanh - target) / (1 + slope * (1 - tanh.square()))
        x = y - u_hat * a.tanh()
        self._call(x)  # which keeps the logarithm of the volume
        return x


def _bisect(slope: Tensor, target: Tensor) -> Tensor:
    """Solves a + slope · tanh(a) = target: a is within |slope| of the target."""
    low, high = target - slope.abs(), target + slope.abs()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        below: Any = middle + slope * middle.tanh() < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
