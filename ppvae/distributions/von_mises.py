"""The von Mises distribution of angles, accurate where it is narrow, and a likelihood of it."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_number
from ppvae.distributions.parameters import check_params, full_precision, resolve_event_dim


class VonMises(dist.VonMises):
    r"""Pyro's von Mises distribution with a log-density that loses nothing at high concentration.

    .. math:: \log p(x) = -2 \kappa \sin^2 \frac{x - \mu}{2} - \log\big(2 \pi\, e^{-\kappa} I_0(\kappa)\big)

    The difference κ cos(x − μ) − log I₀(κ) of the usual form is off by 1e-3 nats in float32 at κ = 1e4.

    Args:
        loc: μ in radians, shape (*batch).
        concentration: κ > 0, shape (*batch).

    Example:
        >>> VonMises(torch.tensor(0.0), torch.tensor(1e6)).log_prob(torch.tensor(0.001))
        tensor(5.4888)
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMises:
        """Returns the distribution with its batch shape expanded."""
        loc, concentration = self.loc.expand(batch_shape), self.concentration.expand(batch_shape)
        return VonMises(loc, concentration, validate_args=self.__dict__.get("_validate_args"))

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-densities of angles in radians, in nats per radian."""
        if self._validate_args:
            self._validate_sample(value)
        off = torch.sin((value - self.loc) / 2).square()
        return -2 * self.concentration * off - torch.special.i0e(self.concentration).log() - math.log(2 * math.pi)


class ConditionalVonMises(nn.Module):
    r"""Independent angles given a context.

    .. math:: p(x \mid c) \propto \exp\big(\kappa(c) \cos(x - \mu(c))\big), \qquad \mu = \mathrm{atan2}(a(c), b(c))

    The net gives a direction (a, b) and not an angle, which would jump where it passes π.

    Args:
        net: A module from the context to ``(..., 3, *event_shape)``, which are a, b and the raw concentration stacked.
        min_concentration: The least κ.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If an option is out of range, or the net's ``out_shape`` does not fit it.
        TypeError: If ``net`` is not a module.

    Example:
        >>> from ppvae.nn import MLP
        >>> p_x_given_z = ConditionalVonMises(MLP(5, (32,), (3, 4)))
        >>> p_x_given_z(torch.zeros(128, 5)).log_prob(torch.zeros(128, 4)).shape
        torch.Size([128])
    """

    def __init__(self, net: nn.Module, *, min_concentration: float = 1e-3, event_dim: int | None = None) -> None:
        super().__init__()
        self.min_concentration = check_number("min_concentration", min_concentration, above=0)
        self.event_dim = resolve_event_dim(net, num_params=3, event_dim=event_dim)
        self.net = net

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        params = check_params(full_precision(self.net(*context)), 3, self.event_dim)
        a, b, raw = params.unbind(-self.event_dim - 1)
        concentration = F.softplus(raw) + self.min_concentration
        return VonMises(torch.atan2(a, b), concentration).to_event(self.event_dim)
