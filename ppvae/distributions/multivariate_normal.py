"""The normal with a full covariance."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_number
from ppvae.distributions.parameters import declared_out_shape, full_precision, resolve_event_dim


class ConditionalMultivariateNormal(nn.Module):
    r"""A normal distribution with a full covariance given a context.

    .. math:: p(x \mid c) = \mathcal{N}\big(x;\, \mu(c),\, L(c) L(c)^\top\big), \qquad
        L_{ii} = \sigma_{\min} + \mathrm{softplus}(\rho_i(c))

    with L lower triangular. As a posterior it can be exact for a linear-Gaussian model, where a diagonal one cannot.

    Args:
        net: A module from the context to ``(..., k + k (k + 1) / 2)``: the mean, then the lower triangle of L row by
            row, with its diagonal before the softplus.
        min_scale: σ_min, the least element of the diagonal, in units of the data.

    Raises:
        ValueError: If ``min_scale`` is not a positive number, or the net's output is of another shape, by its declared
            ``out_shape`` or on a call.
        TypeError: If ``net`` is not a module.

    Example:
        >>> from ppvae.nn import MLP
        >>> q_z_given_x = ConditionalMultivariateNormal(MLP(784, (400,), 20 + 20 * 21 // 2))
        >>> q_z_given_x(torch.zeros(128, 784)).rsample((5,)).shape
        torch.Size([5, 128, 20])
    """

    def __init__(self, net: nn.Module, *, min_scale: float = 1e-4) -> None:
        super().__init__()
        resolve_event_dim(net, num_params=None, event_dim=1)
        check_number("min_scale", min_scale, above=0)
        if (declared := declared_out_shape(net)) is not None:
            _size_of(declared)
        self.net, self.min_scale = net, min_scale

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and event shape ``(k,)``."""
        params = full_precision(self.net(*context))
        k = _size_of(params.shape[-1:])
        loc, triangle = params.split([k, params.shape[-1] - k], -1)
        row, column = torch.tril_indices(k, k, device=params.device)
        places = (k * row + column).expand(triangle.shape)
        lower = params.new_zeros(*params.shape[:-1], k * k).scatter(-1, places, triangle).unflatten(-1, (k, k))
        diagonal = F.softplus(lower.diagonal(dim1=-2, dim2=-1)) + self.min_scale
        scale_tril = lower.tril(-1) + diagonal.diag_embed()
        return _MultivariateNormal(loc, scale_tril=scale_tril)

    def extra_repr(self) -> str:
        """Describes the scale."""
        return f"min_scale={self.min_scale:g}"


class _MultivariateNormal(dist.MultivariateNormal):
    """Draws by a matrix product, which autocast would round."""

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        with torch.autocast(self.loc.device.type, enabled=False):
            return super().rsample(sample_shape)


def _size_of(shape: tuple[int, ...]) -> int:
    """The k of k + k (k + 1) / 2 numbers."""
    k = (math.isqrt(9 + 8 * shape[-1]) - 3) // 2 if len(shape) == 1 else 0
    if k < 1 or k * (k + 3) // 2 != shape[-1]:
        raise ValueError(f"net must return (..., k + k (k + 1) / 2), a mean and a lower triangle, got {tuple(shape)}")
    return k
