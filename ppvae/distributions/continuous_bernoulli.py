"""The continuous Bernoulli: a density for grey levels in [0, 1], computed from the logits."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints

from ppvae.distributions.parameters import full_precision, resolve_event_dim


class ContinuousBernoulli(dist.TorchDistribution):
    r"""The continuous Bernoulli distribution on [0, 1], with its normaliser exact at any logit.

    .. math:: p(x) = \frac{\ell\, e^{\ell x}}{e^\ell - 1}, \qquad
        \log p(x) = \ell\, (x - ½) - \log \frac{\sinh(\ell / 2)}{\ell / 2}

    Grey images have pixels at exactly 0 and 1, which drive the logits far out. The distribution of this name
    in PyTorch computes the normaliser from a probability clamped by the resolution of the dtype: in float32
    its density is off by up to 0.03 nats a pixel for logits of 10 to 16, and further on it stays at its value
    for 16, so that the logits get no gradient. Here the normaliser is not clamped.

    Args:
        logits: The logits ℓ, any real numbers; ``batch_shape``.
        validate_args: Whether to check parameters and values; None follows the global setting.

    Raises:
        TypeError: If ``logits`` is not a tensor.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem &
        Cunningham 2019), arXiv 1907.06845.

    Example:
        >>> ContinuousBernoulli(torch.tensor([-50.0, 0.0])).log_prob(torch.tensor(0.0)).exp()
        tensor([50.0000,  1.0000])
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        if not isinstance(logits, Tensor):
            raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ContinuousBernoulli":
        """Returns the distribution with its batch shape expanded.

        Args:
            batch_shape: The new batch shape.

        Returns:
            The expanded distribution, which shares the logits.
        """
        new = self._get_checked_instance(ContinuousBernoulli, _instance)
        new.logits = self.logits.expand(batch_shape)
        super(ContinuousBernoulli, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-density of values.

        Args:
            value: Values in [0, 1], broadcastable with ``batch_shape``.

        Returns:
            Log-densities in nats, of the broadcast shape.
        """
        if self._validate_args:
            self._validate_sample(value)
        size, small, near_zero = self._sizes(0.5)
        # log(sinh(ℓ/2) / (ℓ/2)), and its series where the formula is 0/0.
        normaliser = size / 2 + (torch.expm1(-size) / -size).log()
        square = small.square()
        series = square / 24 * (1 - square / 120 * (1 - square / 63 * (1 - square * (3 / 160))))
        return self.logits * (value - 0.5) - torch.where(near_zero, series, normaliser)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws values by the inverse of the cumulative distribution, differentiable in the logits.

        Args:
            sample_shape: Shape of the draws, to the left of ``batch_shape``.

        Returns:
            Values in [0, 1], ``(*sample_shape, *batch_shape)``.
        """
        shape, eps = self._extended_shape(sample_shape), torch.finfo(self.logits.dtype).eps
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device).clamp(eps, 1 - eps)
        size, small, near_zero = self._sizes(0.03)
        # The quantile of a negative logit, mirrored for a positive one, whose own would overflow.
        mirrored = self.logits > 0
        fall = torch.log1p(torch.where(mirrored, 1 - u, u) * torch.expm1(-size)) / -size
        series = u + u * (1 - u) * small / 2 * (1 + (1 - 2 * u) * small / 3)
        return torch.where(near_zero, series, torch.where(mirrored, 1 - fall, fall)).clamp(0, 1)

    @property
    def mean(self) -> Tensor:
        """The mean, 1 / (1 − exp(−ℓ)) − 1 / ℓ."""
        size, small, near_zero = self._sizes(0.5)
        square = small.square()
        series = small / 12 * (1 - square / 60 * (1 - square / 42 * (1 - square / 40)))
        offset = (-1 / torch.expm1(-size) - 1 / size - 0.5) * self.logits.sign()
        return 0.5 + torch.where(near_zero, series, offset)

    @property
    def variance(self) -> Tensor:
        """The variance, 1 / ℓ² − 1 / (4 sinh²(ℓ / 2))."""
        size, small, near_zero = self._sizes(0.5)
        square = small.square()
        series = (1 - square / 20 * (1 - square * (5 / 126) * (1 - square * (7 / 200)))) / 12
        tail = torch.exp(-size) / torch.expm1(-size).square()
        return torch.where(near_zero, series, 1 / size.square() - tail)

    def _sizes(self, near: float) -> tuple[Tensor, Tensor, Tensor]:
        """Returns |ℓ| or else ``near``, ℓ or else zero, and where ℓ is nearer to zero than that.

        The formulas divide by ℓ and the series grow in it: each gets arguments where it is finite, because an
        infinity on the side that ``torch.where`` does not take is a NaN in its gradient.
        """
        size = self.logits.abs()
        near_zero = size < near
        return size.masked_fill(near_zero, near), self.logits.masked_fill(~near_zero, 0.0), near_zero


class ConditionalContinuousBernoulli(nn.Module):
    r"""Independent continuous Bernoulli variables on [0, 1] given a context: a density for grey levels.

    .. math:: p(x \mid c) = \prod_i \frac{\ell_i\, e^{\ell_i x_i}}{e^{\ell_i} - 1}, \qquad \ell = \ell(c)

    A Bernoulli likelihood of grey levels lacks the normaliser and is no density.

    Args:
        net: A module from the context to the logits ℓ, ``(..., *event_shape)``.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If ``event_dim`` is negative or beyond the net's ``out_shape``.
        TypeError: If ``net`` is not a module.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem &
        Cunningham 2019), arXiv 1907.06845.

    Example:
        >>> from ppvae.nn import MLP
        >>> p_x_given_z = ConditionalContinuousBernoulli(MLP(20, (400,), 784))
        >>> p_x_given_z(torch.zeros(128, 20)).mean.shape
        torch.Size([128, 784])
    """

    def __init__(self, net: nn.Module, *, event_dim: int | None = None) -> None:
        super().__init__()
        self.event_dim = resolve_event_dim(net, num_params=None, event_dim=event_dim)
        self.net = net

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        return ContinuousBernoulli(full_precision(self.net(*context))).to_event(self.event_dim)
