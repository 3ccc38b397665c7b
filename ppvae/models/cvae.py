"""The conditional variational autoencoder: of x given a label, a vector or an image y.

Sohn et al. 2015, "Learning structured output representation using deep conditional generative models"; with a class
label and a prior that does not see it, the conditional part of M2 of Kingma et al. 2014, arXiv 1406.5298.

    z ~ p(z|y)              x ~ p(x|z,y)              guide: z ~ q(z|x,y)

    log p(x|y) ≥ E_q[log p(x|z,y)] − KL(q(z|x,y) ‖ p(z|y))    trained with β times the second term
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae._validate import check_number
from ppvae.models.base import ConditionalQueries, check_each, check_pieces
from ppvae.nn import check_context
from ppvae.pair import KLWeight


class CVAE(ConditionalQueries):
    """A generative model of x given y with one latent z, and an amortized guide.

    y is a class index, where the nets have `embed=OneHot(num_classes)`, or floats of any event shape. In the model
    and the guide it is checked where Pyro's validation is on, in the queries always.

    Args:
        p_z: prior, a module `y -> p(z|y)`: `StandardNormal(k)` ignores y, a `ConditionalNormal` learns it.
        p_x_given_zy: likelihood, a module `(z, y) -> p(x|z,y)`, e.g. of a `ConditionalMLP`.
        q_z_given_xy: posterior, a module `(x, y) -> q(z|x,y)`.
        beta: weight of the KL term while training; evaluation ignores it.

    Raises:
        ValueError: where `beta` is no number >= 0.
        TypeError: where a piece is no module.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
        >>> from ppvae.nn import ConditionalMLP, OneHot
        >>> cvae = CVAE(
        ...     p_z=StandardNormal(2),
        ...     p_x_given_zy=ConditionalBernoulli(ConditionalMLP(2, 10, (32,), 64, embed=OneHot(10))),
        ...     q_z_given_xy=ConditionalNormal(ConditionalMLP(64, 10, (32,), (2, 2), embed=OneHot(10))),
        ... )
        >>> x, y = torch.bernoulli(torch.full((100, 64), 0.5)), torch.arange(100) % 10
        >>> run = ppvae.fit(cvae, (x, y), epochs=1, progress=False)
        >>> ppvae.log_marginal(cvae, x, y, num_samples=10).values.shape
        torch.Size([100])
        >>> cvae.style_transfer(x, y, torch.arange(10)).shape
        torch.Size([10, 100, 64])
    """

    def __init__(self, p_z: nn.Module, p_x_given_zy: nn.Module, q_z_given_xy: nn.Module, *, beta: float = 1.0) -> None:
        super().__init__()
        check_number("beta", beta, at_least=0)
        check_pieces(p_z=p_z, p_x_given_zy=p_x_given_zy, q_z_given_xy=q_z_given_xy)
        self.p_z = p_z
        self.p_x_given_zy = p_x_given_zy
        self.q_z_given_xy = q_z_given_xy
        self.beta = beta

    def model(self, x: Tensor, y: Tensor) -> None:
        """Z ~ p(z|y), x ~ p(x|z,y)."""
        if dist.is_validation_enabled():
            self.check_batch(x, y)
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            z = pyro.sample("z", self.p_z(y))
            pyro.sample("x", self.p_x_given_zy(z, y), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Z ~ q(z|x,y)."""
        if dist.is_validation_enabled():
            self.check_batch(x, y)
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            pyro.sample("z", self.q_z_given_xy(x, y))

    def encode(self, x: Tensor, y: Tensor) -> TorchDistribution:
        """q(z|x,y) for x of shape (..., *event) with one y each: its `.mean` is the code of x."""
        check_each(x, y, check_context(self, y, name="y"))
        return self.q_z_given_xy(x, y)

    def decode(self, z: Tensor, y: Tensor) -> TorchDistribution:
        """p(x|z,y) for z of shape (..., k) and y, whose leading dims broadcast."""
        check_context(self, y, name="y")
        return self.p_x_given_zy(z, y)
