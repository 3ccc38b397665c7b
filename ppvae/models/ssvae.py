"""M2, the semi-supervised variational autoencoder: a label y that some data come with and others do not.

Kingma et al. 2014, "Semi-supervised learning with deep generative models", arXiv 1406.5298.

    y ~ p(y)      z ~ p(z)      x ~ p(x|z,y)              guide: y ~ q(y|x) unless it is known, z ~ q(z|x,y)

    log p(x, y) ≥ E_q(z|x,y)[log p(x|z,y) + log p(y) + log p(z) − log q(z|x,y)] = −L(x, y)
    log p(x)    ≥ Σ_y q(y|x) [−L(x, y) − log q(y|x)]

trained on the sum of the two over the labelled and the unlabelled data, plus α log q(y|x) of each labelled datum.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae._validate import check_number
from ppvae.models.base import ConditionalQueries, check_each, check_pieces
from ppvae.nn import check_context
from ppvae.pair import loss_term


class SSVAE(ConditionalQueries):
    """A generative model of x with a class y and a style z, and a guide with a classifier.

    The guide marks an unknown y for enumeration: train with `TraceEnum_ELBO`, which sums over it exactly, as
    `log_marginal` does. `ppvae.data.JointBatches` gives a labelled and an unlabelled minibatch at every step.

    Args:
        p_y: prior over the classes, a module `() -> p(y)`, e.g. `UniformCategorical(10)`.
        p_z: prior of the style, a module `y -> p(z)`, e.g. `StandardNormal(k)`.
        p_x_given_zy: likelihood, a module `(z, y) -> p(x|z,y)`, e.g. of a `ConditionalMLP` with `embed=OneHot(10)`.
        q_y_given_x: classifier, a module `x -> q(y|x)`, a `ConditionalCategorical`.
        q_z_given_xy: posterior of the style, a module `(x, y) -> q(z|x,y)`.
        alpha: α, weight of log q(y|x) for each labelled datum while training; evaluation ignores it. The paper's
            0.1·N for a data set of N, of which M have labels, is 0.1·N/M here.

    Raises:
        ValueError: where `alpha` is no number >= 0.
        TypeError: where a piece is no module.

    Example:
        >>> import torch, ppvae
        >>> from pyro.infer import TraceEnum_ELBO
        >>> from ppvae.data import Batches, JointBatches
        >>> from ppvae.distributions import (
        ...     ConditionalBernoulli, ConditionalCategorical, ConditionalNormal, StandardNormal, UniformCategorical
        ... )
        >>> from ppvae.nn import MLP, ConditionalMLP, OneHot
        >>> ssvae = SSVAE(
        ...     p_y=UniformCategorical(10),
        ...     p_z=StandardNormal(2),
        ...     p_x_given_zy=ConditionalBernoulli(ConditionalMLP(2, 10, (32,), 64, embed=OneHot(10))),
        ...     q_y_given_x=ConditionalCategorical(MLP(64, (32,), 10), num_classes=10),
        ...     q_z_given_xy=ConditionalNormal(ConditionalMLP(64, 10, (32,), (2, 2), embed=OneHot(10))),
        ...     alpha=1.0,
        ... )
        >>> x, y = torch.bernoulli(torch.full((100, 64), 0.5)), torch.arange(20) % 10
        >>> both = JointBatches(Batches(x[:20], y, batch_size=20), Batches(x[20:], batch_size=40))
        >>> run = ppvae.fit(ssvae, both, loss=TraceEnum_ELBO(), epochs=1, progress=False)
        >>> ssvae.classify(x).shape, ppvae.log_marginal(ssvae, x, num_samples=10).values.shape
        (torch.Size([100, 10]), torch.Size([100]))
    """

    def __init__(
        self,
        p_y: nn.Module,
        p_z: nn.Module,
        p_x_given_zy: nn.Module,
        q_y_given_x: nn.Module,
        q_z_given_xy: nn.Module,
        *,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, at_least=0)
        check_pieces(p_y=p_y, p_z=p_z, p_x_given_zy=p_x_given_zy, q_y_given_x=q_y_given_x, q_z_given_xy=q_z_given_xy)
        self.p_y = p_y
        self.p_z = p_z
        self.p_x_given_zy = p_x_given_zy
        self.q_y_given_x = q_y_given_x
        self.q_z_given_xy = q_z_given_xy
        self.alpha = alpha

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """Y ~ p(y), z ~ p(z), x ~ p(x|z,y); where y is known, α log q(y|x) is added to the objective."""
        if dist.is_validation_enabled() and y is not None:
            self.check_batch(x, y)
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", self.p_y(), obs=y)
            z = pyro.sample("z", self.p_z(label))
            pyro.sample("x", self.p_x_given_zy(z, label), obs=x)
            if y is not None and self.alpha > 0:
                loss_term("classifier", -self.alpha * self.q_y_given_x(x).log_prob(y))

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Y ~ q(y|x) where it is not known, enumerated; z ~ q(z|x,y)."""
        if dist.is_validation_enabled() and y is not None:
            self.check_batch(x, y)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", self.q_y_given_x(x), infer={"enumerate": "parallel"})
            pyro.sample("z", self.q_z_given_xy(x, y))

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """q(y|x), the probability of each class, shape (..., c), for x of shape (..., *event)."""
        return self.q_y_given_x(x).probs

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """q(z|x,y) for x of shape (..., *event) with one y each; by default the most probable under q(y|x)."""
        if y is None:
            y = self.q_y_given_x(x).probs.argmax(-1)
        check_each(x, y, check_context(self, y, name="y"))
        return self.q_z_given_xy(x, y)

    def decode(self, z: Tensor, y: Tensor) -> TorchDistribution:
        """p(x|z,y) for z of shape (..., k) and y, whose leading dims broadcast."""
        check_context(self, y, name="y")
        return self.p_x_given_zy(z, y)
