"""A likelihood of standardised data that gives log p(x) of the data as they are, in their own units."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import Independent, transforms

from ppvae._validate import check_tensor

MIN_SPREAD = 1e-6
"""Elements that vary by less than this part of their mean, which may be rounding, keep the scale one."""


class Standardize(nn.Module):
    r"""Data minus their mean, divided by their standard deviation: what an encoder is given first.

    .. math:: u = (x - m) / s

    Args:
        loc: m, of the event shape of a datum, or a number.
        scale: s > 0, of the same shape.

    Raises:
        TypeError: where one is no tensor.
        ValueError: where the shapes differ, or a scale is not positive.

    Example:
        >>> standardize = Standardize.of(torch.tensor([[100.0, 5.0], [300.0, 5.0]]))
        >>> standardize(torch.tensor([200.0, 6.0]))
        tensor([0., 1.])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        if check_tensor("loc", loc).shape != check_tensor("scale", scale).shape:
            raise ValueError(f"loc and scale must be of one shape, got {tuple(loc.shape)} and {tuple(scale.shape)}")
        if not bool(((scale > 0) & scale.isfinite() & loc.isfinite()).all()):
            raise ValueError("scale must be positive, and both finite")
        self.register_buffer("loc", loc.clone())
        self.register_buffer("scale", scale.clone())

    @classmethod
    def of(cls, x: Tensor) -> Standardize:
        """By the mean and the standard deviation of each element over training data (n, ...), computed in float64.

        Elements that do not vary keep the scale one.
        """
        wide = check_tensor("x", x).double()
        loc, scale = wide.mean(0), wide.std(0, correction=0)
        scale = torch.where(scale > MIN_SPREAD * loc.abs(), scale, 1.0)
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return cls(loc.to(dtype), scale.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., *event_shape)`` to itself."""
        return (x - self.loc) / self.scale


class Rescaled(dist.TransformedDistribution):
    """A distribution of x = m + s u by that of u, with its mean and variance.

    Args:
        base: of u; elements are batch dims.
        shift: m.
        factor: s.
    """

    def __init__(self, base: Any, shift: Tensor, factor: Tensor, *, validate_args: bool | None = None) -> None:
        self.shift, self.factor = shift, factor
        affine = transforms.AffineTransform(shift, factor, event_dim=len(base.event_shape))
        super().__init__(base, [affine], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Rescaled:
        """Returns the distribution with its batch shape expanded."""
        return Rescaled(self.base_dist.expand(Size(batch_shape)), self.shift, self.factor, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The mean, m + s E[u]."""
        return self.shift + self.factor * self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """The variance, s² Var u."""
        return self.factor.square() * self.base_dist.variance


class Standardized(nn.Module):
    r"""A likelihood of x by one of u = (x − m) / s, so that nets and scales start at one, whatever the data's units.

    .. math:: \log p(x \mid c) = \log p_u\big((x - m) / s \mid c\big) - \sum \log s

    Args:
        piece: A module that returns p(u|c), such as `ConditionalNormal`.
        standardize: m and s.

    Raises:
        TypeError: where the piece is no module.

    Example:
        >>> from ppvae.distributions import ConditionalNormal
        >>> from ppvae.nn import MLP
        >>> x = 1000 + 50 * torch.randn(100, 8)
        >>> standardize = Standardize.of(x)
        >>> p_x_given_z = Standardized(ConditionalNormal(MLP(2, (16,), (2, 8))), standardize)
        >>> q_z_given_x = ConditionalNormal(nn.Sequential(standardize, MLP(8, (16,), (2, 2))))
        >>> p_x_given_z(torch.zeros(100, 2)).log_prob(x).shape
        torch.Size([100])
    """

    def __init__(self, piece: nn.Module, standardize: Standardize) -> None:
        super().__init__()
        if not isinstance(piece, nn.Module):
            raise TypeError(f"piece must be a module that returns a distribution, got {type(piece).__name__}")
        self.piece, self.standardize = piece, standardize

    def forward(self, *context: Tensor) -> TorchDistribution:
        """Returns p(x|c), of the batch and event shape of p(u|c)."""
        fn, loc, scale = self.piece(*context), self.standardize.loc, self.standardize.scale
        if isinstance(fn, Independent):  # of independent elements, of which some may be left out
            return Rescaled(fn.base_dist, loc, scale).to_event(fn.reinterpreted_batch_ndims)
        return Rescaled(fn, loc, scale)
