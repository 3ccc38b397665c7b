"""The variational autoencoder.

Kingma & Welling 2014, "Auto-encoding variational Bayes", arXiv 1312.6114; with `beta` not 1, the β-VAE of Higgins
et al. 2017, "beta-VAE: learning basic visual concepts with a constrained variational framework".

    z ~ p(z)                x ~ p(x|z)                guide: z ~ q(z|x)

    log p(x) ≥ E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))    trained with β times the second term
"""

from __future__ import annotations

import pyro
from torch import Tensor, nn

from ppvae._validate import check_number
from ppvae.models.base import VAEQueries, check_pieces
from ppvae.pair import KLWeight


class VAE(VAEQueries):
    """A generative model with one latent z, and an amortized guide.

    Args:
        p_z: prior, a module `() -> p(z)`, e.g. `StandardNormal(k)`.
        p_x_given_z: likelihood, a module `z -> p(x|z)`, e.g. `ConditionalBernoulli(MLP(k, (200,), d))`.
        q_z_given_x: posterior, a module `x -> q(z|x)`, e.g. `ConditionalNormal(MLP(d, (200,), (2, k)))`.
        beta: weight of the KL term while training; evaluation ignores it.

    Raises:
        ValueError: where `beta` is no number >= 0.
        TypeError: where a piece is no module.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
        >>> from ppvae.nn import MLP
        >>> vae = VAE(
        ...     p_z=StandardNormal(2),
        ...     p_x_given_z=ConditionalBernoulli(MLP(2, (32,), 64)),
        ...     q_z_given_x=ConditionalNormal(MLP(64, (32,), (2, 2))),
        ... )
        >>> x = torch.bernoulli(torch.full((100, 64), 0.5))
        >>> run = ppvae.fit(vae, x, epochs=1, progress=False)
        >>> ppvae.log_marginal(vae, x, num_samples=10).values.shape
        torch.Size([100])
    """

    def __init__(self, p_z: nn.Module, p_x_given_z: nn.Module, q_z_given_x: nn.Module, *, beta: float = 1.0) -> None:
        super().__init__()
        check_number("beta", beta, at_least=0)
        check_pieces(p_z=p_z, p_x_given_z=p_x_given_z, q_z_given_x=q_z_given_x)
        self.p_z = p_z
        self.p_x_given_z = p_x_given_z
        self.q_z_given_x = q_z_given_x
        self.beta = beta

    def model(self, x: Tensor) -> None:
        """Z ~ p(z), x ~ p(x|z)."""
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            z = pyro.sample("z", self.p_z())
            pyro.sample("x", self.p_x_given_z(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """Z ~ q(z|x)."""
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            pyro.sample("z", self.q_z_given_x(x))
