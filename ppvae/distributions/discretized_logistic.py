"""The discretised logistic: a probability mass on the levels of a pixel, computed without cancellation."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from ppvae._validate import check_count
from ppvae.distributions.parameters import LocationScale, Scale


class GreyLevels(constraints.Constraint):
    """Values that lie on one of ``num_levels`` equidistant levels from 0 to 1.

    Args:
        num_levels: Number of levels, at least two.

    Example:
        >>> GreyLevels(256).check(torch.tensor([0.0, 7 / 255, 0.5]))
        tensor([ True,  True, False])
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, num_levels: int) -> None:
        self.num_levels = num_levels
        super().__init__()

    def __repr__(self) -> str:  # torch's own drops the first letter
        return f"k / {self.num_levels - 1} with k = 0, …, {self.num_levels - 1}"

    def check(self, value: Tensor) -> Tensor:
        """Returns whether each value is a level, up to a hundredth of the distance between two."""
        level = value * (self.num_levels - 1)
        nearest = level.round().clamp(0, self.num_levels - 1)
        return (level - nearest).abs() <= 0.01


class DiscretizedLogistic(dist.TorchDistribution):
    r"""A logistic distribution rounded to the nearest of ``num_levels`` levels from 0 to 1.

    With L levels, the level k / (L − 1) gets the mass of the interval of width 1 / (L − 1) around it; the
    first and the last one get the tails besides. In units of levels, μ' = (L − 1) μ and s' = (L − 1) s,

    .. math:: P(k) = S\Big(\frac{k + ½ - μ'}{s'}\Big) - S\Big(\frac{k - ½ - μ'}{s'}\Big)
        = S\Big(\frac{k + ½ - μ'}{s'}\Big)\, S\Big(\frac{μ' + ½ - k}{s'}\Big) \big(1 - e^{-1 / s'}\big)

    with S the logistic sigmoid.

    The product is exact where the difference would underflow, so that far tails have finite log-probabilities
    and gradients in float32. A value off the levels is an error under ``validate_args`` and is read as the
    nearest level without it.

    Args:
        loc: Location μ of the logistic, any real number; ``batch_shape`` after broadcasting with ``scale``.
        scale: Scale s > 0 of the logistic, in the units of ``loc``.
        num_levels: Number of levels L, at least two.
        validate_args: Whether to check parameters and values; None follows the global setting.

    Raises:
        ValueError: If ``num_levels`` is below two, or, under ``validate_args``, ``scale`` is not positive.
        TypeError: If ``loc`` or ``scale`` is not a tensor.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al. 2016),
        arXiv 1606.04934.
        PixelCNN++ (Salimans et al. 2017), arXiv 1701.05517.

    Example:
        >>> levels = torch.arange(256) / 255
        >>> pixel = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.05))
        >>> pixel.log_prob(levels).exp().sum()
        tensor(1.0000)
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012

    def __init__(self, loc: Tensor, scale: Tensor, num_levels: int = 256, *, validate_args: bool | None = None) -> None:
        for name, value in (("loc", loc), ("scale", scale)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        self.num_levels = check_count("num_levels", num_levels, at_least=2)
        batch_shape = torch.broadcast_shapes(loc.shape, scale.shape)
        # The scale is left to broadcast: one shared by all pixels costs one logarithm, not one per pixel.
        self.loc, self.scale = loc.expand(batch_shape), scale
        super().__init__(batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The levels from 0 to 1."""
        return GreyLevels(self.num_levels)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":
        """Returns the distribution with its batch shape expanded.

        Args:
            batch_shape: The new batch shape.

        Returns:
            The expanded distribution, which shares the parameters.
        """
        new = self._get_checked_instance(DiscretizedLogistic, _instance)
        new.num_levels, new.scale = self.num_levels, self.scale
        new.loc = self.loc.expand(batch_shape)
        super(DiscretizedLogistic, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-mass of levels.

        Args:
            value: Levels k / (L − 1), broadcastable with ``batch_shape``.

        Returns:
            Log-probabilities in nats, of the broadcast shape.
        """
        if self._validate_args:
            self._validate_sample(value)
        last = self.num_levels - 1
        # Whole levels: the edges between two of them are then the same number seen from either side.
        level = (value * last).round()
        scale = self.scale * last
        offset = level - self.loc * last
        log_below = F.logsigmoid((0.5 + offset) / scale)
        log_above = F.logsigmoid((0.5 - offset) / scale)
        log_between = log_below + log_above + torch.expm1(-1 / scale).neg().log()
        return torch.where(level <= 0, log_below, torch.where(level >= last, log_above, log_between))

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # noqa: B008
        """Draws levels.

        Args:
            sample_shape: Shape of the draws, to the left of ``batch_shape``.

        Returns:
            Levels in [0, 1], ``(*sample_shape, *batch_shape)``.
        """
        last = self.num_levels - 1
        with torch.no_grad():
            u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            level = ((self.loc + self.scale * u.logit()) * last).round()
            return level.clamp(0, last) / last

    @property
    def mean(self) -> Tensor:
        """The exact mean, Σ P(x > edge) / (L − 1) over the edges between levels."""
        last = self.num_levels - 1
        # One edge at a time: all at once would take the memory of as many images.
        total = torch.zeros_like(self.loc)
        for level in range(last):
            total = total + torch.sigmoid((self.loc - (level + 0.5) / last) / self.scale)
        return total / last


class ConditionalDiscretizedLogistic(LocationScale):
    r"""Independent discretised logistic pixels given a context: a likelihood that is a mass on grey levels.

    .. math:: p(x \mid c) = \prod_i \mathrm{DiscretizedLogistic}\big(x_i;\, \mu_i(c),\, s_i(c)\big)

    Args:
        net: A module from the context to ``(..., 2, *event_shape)``, location and raw scale stacked, where
            ``scale`` is ``"conditional"``; to ``(..., *event_shape)``, the location, otherwise.
        num_levels: Number L of levels of a pixel; values are k / (L − 1), floats in [0, 1].
        scale: ``"learned"``, one parameter for all pixels, which starts at 0.1; ``"conditional"`` on the
            context; or a positive number, fixed. In units of the values, whose range is 1.
        min_scale: The least scale that is conditional or learned, in the same units; the default is an
            eighth of the distance between two of 256 levels.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If an option is not one of the above, or the net's ``out_shape`` does not fit it.
        TypeError: If ``net`` is not a module.

    References:
        Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al. 2016),
        arXiv 1606.04934.

    Example:
        >>> from ppvae.nn import ConvDecoder
        >>> p_x_given_z = ConditionalDiscretizedLogistic(ConvDecoder(20, (32, 16), (3, 32, 32)))
        >>> p_x_given_z(torch.zeros(8, 20)).log_prob(torch.zeros(8, 3, 32, 32)).shape
        torch.Size([8])
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_levels: int = 256,
        scale: Scale = "learned",
        min_scale: float = 5e-4,
        event_dim: int | None = None,
    ) -> None:
        super().__init__(net, scale, first_scale=0.1, min_scale=min_scale, event_dim=event_dim)
        self.num_levels = check_count("num_levels", num_levels, at_least=2)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        loc, scale = self.location_scale(*context)
        return DiscretizedLogistic(loc, scale, self.num_levels).to_event(self.event_dim)
