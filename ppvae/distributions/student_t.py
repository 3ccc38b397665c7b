"""Student's t distribution: a normal likelihood with heavy tails, for data with outliers."""

from __future__ import annotations

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppvae._validate import check_number
from ppvae.distributions.parameters import LocationScale, Scale

FIRST_DF = 4.0
"""Where learned degrees of freedom start."""
MIN_DF = 1.0
"""The least that they become: with fewer there is no mean."""


class ConditionalStudentT(LocationScale):
    r"""Independent Student t variables given a context.

    .. math:: p(x \mid c) = \prod_i t_\nu\Big(\frac{x_i - \mu_i(c)}{\sigma_i(c)}\Big) \Big/ \sigma_i(c)

    Args:
        net: As of `ConditionalNormal`.
        df: The degrees of freedom ν: ``"learned"``, one for all elements, above 1, starting at 4; or a positive number,
            fixed. Towards infinity the distribution is normal.
        scale: As of `ConditionalNormal`; it is no standard deviation, which is √(ν / (ν − 2)) times larger.
        min_scale: The least scale that is conditional or learned, in units of the data.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If an option is not one of the above, or the net's ``out_shape`` does not fit it.
        TypeError: If ``net`` is not a module.

    References:
        Robust statistical modeling using the t distribution (Lange, Little & Taylor 1989), JASA 84.

    Example:
        >>> from ppvae.nn import MLP
        >>> p_x_given_z = ConditionalStudentT(MLP(5, (32,), (2, 20)), df=3.0)
        >>> p_x_given_z(torch.zeros(128, 5)).log_prob(torch.zeros(128, 20)).shape
        torch.Size([128])
    """

    fixed_df: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        df: Literal["learned"] | float = "learned",
        scale: Scale = "conditional",
        min_scale: float = 1e-4,
        event_dim: int | None = None,
    ) -> None:
        super().__init__(net, scale, first_scale=1.0, min_scale=min_scale, event_dim=event_dim)
        self.df = df
        if df == "learned":
            self.raw_df = nn.Parameter(torch.tensor(math.log(math.expm1(FIRST_DF - MIN_DF))))
        elif isinstance(df, str):
            raise ValueError(f"df must be 'learned' or a number > 0, got {df!r}")
        else:
            self.register_buffer("fixed_df", torch.tensor(check_number("df", df, above=0)), persistent=False)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(x|c), of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        df = MIN_DF + F.softplus(self.raw_df) if self.df == "learned" else self.fixed_df
        return dist.StudentT(df, *self.location_scale(*context)).to_event(self.event_dim)
