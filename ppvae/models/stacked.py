"""M1+M2: a semi-supervised VAE on the code of another VAE.

Kingma et al. 2014, "Semi-supervised learning with deep generative models", arXiv 1406.5298, section 2.1.

    y ~ p(y)   z2 ~ p(z2)   z1 ~ p(z1|z2,y)   x ~ p(x|z1)
    guide: z1 ~ q(z1|x)   y ~ q(y|z1) unless it is known   z2 ~ q(z2|z1,y)

    log p(x) ≥ E_q(z1|x)[log p(x|z1) − log q(z1|x) + Σ_y q(y|z1) (−L(z1, y) − log q(y|z1))]

with L the labelled bound of M2 (`SSVAE`) for the datum z1. The paper trains M1 first, a `VAE` on all data without
labels, then M2 with M1 held fixed: `vae.requires_grad_(False)`. Otherwise both are trained together.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppvae.models.base import ConditionalQueries, check_each, code_of, mean_of
from ppvae.models.ssvae import SSVAE
from ppvae.models.vae import VAE
from ppvae.nn import check_context
from ppvae.pair import loss_term


class StackedSSVAE(ConditionalQueries):
    """A VAE with code z1, and an `SSVAE` of that code in place of the VAE's prior.

    As with `SSVAE`, the guide marks an unknown y for enumeration: train with `TraceEnum_ELBO`.

    Args:
        m1: the VAE: its p(x|z) and q(z|x) are p(x|z1) and q(z1|x), its prior is not used.
        m2: the semi-supervised VAE, whose x is z1: its likelihood p(z1|z2,y) a `ConditionalNormal`.

    Raises:
        TypeError: where one is not what it should be.

    Example:
        >>> import torch
        >>> from ppvae.distributions import (
        ...     ConditionalBernoulli, ConditionalCategorical, ConditionalNormal, StandardNormal, UniformCategorical
        ... )
        >>> from ppvae.nn import MLP, ConditionalMLP, OneHot
        >>> m1 = VAE(
        ...     p_z=StandardNormal(8),
        ...     p_x_given_z=ConditionalBernoulli(MLP(8, (32,), 64)),
        ...     q_z_given_x=ConditionalNormal(MLP(64, (32,), (2, 8))),
        ... )
        >>> m2 = SSVAE(
        ...     p_y=UniformCategorical(10),
        ...     p_z=StandardNormal(4),
        ...     p_x_given_zy=ConditionalNormal(ConditionalMLP(4, 10, (32,), (2, 8), embed=OneHot(10))),
        ...     q_y_given_x=ConditionalCategorical(MLP(8, (32,), 10), num_classes=10),
        ...     q_z_given_xy=ConditionalNormal(ConditionalMLP(8, 10, (32,), (2, 4), embed=OneHot(10))),
        ... )
        >>> pair = StackedSSVAE(m1.requires_grad_(False), m2)
        >>> pair.sample(torch.arange(10)).shape
        torch.Size([10, 64])
    """

    def __init__(self, m1: VAE, m2: SSVAE) -> None:
        super().__init__()
        for name, part, kind in (("m1", m1, VAE), ("m2", m2, SSVAE)):
            if not isinstance(part, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(part).__name__}")
        self.m1 = m1
        self.m2 = m2

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """Y ~ p(y), z2 ~ p(z2), z1 ~ p(z1|z2,y), x ~ p(x|z1); where y is known, α log q(y|z1) is added."""
        if dist.is_validation_enabled() and y is not None:
            self.check_batch(x, y)
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", self.m2.p_y(), obs=y)
            z2 = pyro.sample("z2", self.m2.p_z(label))
            z1 = pyro.sample("z1", self.m2.p_x_given_zy(z2, label))
            pyro.sample("x", self.m1.p_x_given_z(z1), obs=x)
            if y is not None and self.m2.alpha > 0:
                loss_term("classifier", -self.m2.alpha * self.m2.q_y_given_x(z1).log_prob(y))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """z1 ~ q(z1|x); y ~ q(y|z1) where it is not known, enumerated; z2 ~ q(z2|z1,y)."""
        if dist.is_validation_enabled() and y is not None:
            self.check_batch(x, y)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.m1.q_z_given_x(x))
            if y is None:
                y = pyro.sample("y", self.m2.q_y_given_x(z1), infer={"enumerate": "parallel"})
            pyro.sample("z2", self.m2.q_z_given_xy(z1, y))

    @property
    def p_z(self) -> torch.nn.Module:  # type: ignore[override]
        """The prior p(z2)."""
        return self.m2.p_z

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """q(y|z1) at the code of x, shape (..., c), for x of shape (..., *event)."""
        return self.m2.classify(code_of(self.m1.encode(x)))

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """q(z2|z1,y) at the code z1 of x, with one y each; by default the most probable under q(y|z1)."""
        if y is not None:
            check_each(x, y, check_context(self, y, name="y"))
        return self.m2.encode(code_of(self.m1.encode(x)), y)

    def decode(self, z: Tensor, y: Tensor) -> TorchDistribution:
        """p(x|z1) at the mean of p(z1|z2,y), for z2 of shape (..., k) and y, whose leading dims broadcast."""
        return self.m1.decode(code_of(self.m2.decode(z, y)))

    @torch.no_grad()
    def sample(self, y: Tensor, *, mean: bool = False) -> Tensor:
        """Draws one x for every y: z2 ~ p(z2), z1 ~ p(z1|z2,y), x ~ p(x|z1).

        Args:
            y: class indices (...).
            mean: whether to return E[x|z1] at the mean of p(z1|z2,y) in place of draws of z1 and x.

        Returns:
            Data of shape (..., *event).
        """
        p_x = self.m1.decode(self.m2.sample(y, mean=mean))
        return mean_of(p_x) if mean else p_x.sample()
