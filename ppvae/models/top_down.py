"""A hierarchy of latents with a top-down guide: the order of the model, every level given the data.

With two levels and a VampPrior, Tomczak & Welling 2018, "VAE with a VampPrior", arXiv 1705.07120.

    zL ~ p(zL)   …   z1 ~ p(z1|z2)   x ~ p(x|z1)        guide: zL ~ q(zL|x)   …   z2 ~ q(z2|z3, x)   z1 ~ q(z1|z2, x)

    log p(x) ≥ E_q[log p(x|z1)] − KL(q(zL|x) ‖ p(zL)) − Σ_i E_q[KL(q(zi|zi+1, x) ‖ p(zi|zi+1))]
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae.means import code_of
from ppvae.models.levels import Levels, modules_of_levels
from ppvae.pair import KLWeight


class TopDownVAE(Levels):
    """A generative model with latents z1 … zL, from the data upwards, and a guide that draws them from the top.

    Its top posterior q(zL|x) takes the data alone, as a `VampPrior` for zL asks. Both of Pyro's ELBOs hold:
    `TraceMeanField_ELBO` has in closed form every KL that torch knows.

    Args:
        p_z: the priors p(z1|z2), …, p(zL), modules that take the level above them; the last takes nothing.
        p_x_given_z: likelihood, a module `z1 -> p(x|z1)`.
        q_z: the posteriors q(z1|z2, x), …, q(zL|x), modules of the level above and the data, in this order
            (`ppvae.nn.ConcatInputs` is a net of several inputs); the last takes the data alone.
        skip: whether every conditional is given all levels above its own, the nearest first: p(x|z1, …, zL),
            p(zi|zi+1, …, zL) and q(zi|zi+1, …, zL, x). It is the paper's model.
        beta: weight of the KL terms while training; evaluation ignores it.

    Raises:
        ValueError: where `beta` is no number >= 0, or there is not one piece for each level.
        TypeError: where a piece is no module.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, VampPrior
        >>> from ppvae.nn import MLP, ConcatInputs
        >>> x = torch.bernoulli(torch.full((100, 64), 0.5))
        >>> q_z2 = ConditionalNormal(MLP(64, (32,), (2, 2)))
        >>> pair = TopDownVAE(
        ...     p_z=[ConditionalNormal(MLP(2, (16,), (2, 4))), VampPrior(q_z2, x[:10])],
        ...     p_x_given_z=ConditionalBernoulli(ConcatInputs((4, 2), MLP(6, (32,), 64))),
        ...     q_z=[ConditionalNormal(ConcatInputs((2, 64), MLP(66, (32,), (2, 4)))), q_z2],
        ...     skip=True,
        ... )
        >>> run = ppvae.fit(pair, x, epochs=1, progress=False)
        >>> pair.sample(3).shape
        torch.Size([3, 64])
    """

    def __init__(
        self,
        p_z: Sequence[nn.Module],
        p_x_given_z: nn.Module,
        q_z: Sequence[nn.Module],
        *,
        skip: bool = False,
        beta: float = 1.0,
    ) -> None:
        super().__init__(p_z, p_x_given_z, skip=skip, beta=beta)
        self.q_z = modules_of_levels("q_z", q_z, len(self.p_z))

    def guide(self, x: Tensor) -> None:
        """ZL ~ q(zL|x), …, z2 ~ q(z2|z3, x), z1 ~ q(z1|z2, x)."""
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            z: list[Tensor] = []
            for i in reversed(range(len(self.q_z))):
                z.insert(0, pyro.sample(f"z{i + 1}", self.q_z[i](*self.seen(z), x)))

    def encode(self, x: Tensor) -> dict[str, TorchDistribution]:
        """q(zL|x), and q of each further level at the codes, the means, of those above, by their sites, z1 first.

        Args:
            x: data (..., *event).
        """
        z: list[Tensor] = []
        levels: dict[str, TorchDistribution] = {}
        for i in reversed(range(len(self.q_z))):
            q_z = self.q_z[i](*self.seen(z), x)
            levels = {f"z{i + 1}": q_z, **levels}
            z.insert(0, code_of(q_z))
        return levels
