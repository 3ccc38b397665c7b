"""The hierarchical variational autoencoder: several levels of latents, inferred from the data upwards.

Rezende et al. 2014, "Stochastic backpropagation and approximate inference in deep generative models", arXiv 1401.4082;
with two levels, Burda et al. 2016, "Importance weighted autoencoders", arXiv 1509.00519.

    zL ~ p(zL)   …   z1 ~ p(z1|z2)   x ~ p(x|z1)        guide: z1 ~ q(z1|x)   z2 ~ q(z2|z1)   …   zL ~ q(zL|zL−1)

    log p(x) ≥ E_q[log p(x|z1) + Σ_i log p(zi|zi+1) − log q(zi|zi−1)],   zL+1 nothing, z0 = x
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae.means import code_of
from ppvae.models.levels import Levels, modules_of_levels
from ppvae.pair import KLWeight


class HierarchicalVAE(Levels):
    """A generative model with latents z1 … zL, from the data upwards, and an amortized guide in the same direction.

    Train it with `Trace_ELBO`: the KL terms have no closed form, because the guide draws z2 given z1 and the model
    z1 given z2. `TraceMeanField_ELBO` would be another number, and Pyro warns of it.

    Args:
        p_z: the priors p(z1|z2), …, p(zL), modules that take the level above them; the last takes nothing, e.g.
            `[ConditionalNormal(MLP(k2, (100,), (2, k1))), StandardNormal(k2)]`.
        p_x_given_z: likelihood, a module `z1 -> p(x|z1)`.
        q_z: the posteriors q(z1|x), q(z2|z1), …, q(zL|zL−1), modules that take the level below them.
        skip: whether every conditional is given all that is drawn before it, the nearest first: p(x|z1, …, zL),
            p(zi|zi+1, …, zL) and q(zi|zi−1, …, z1, x). `ppvae.nn.ConcatInputs` is a net of several inputs.
        beta: weight of the KL terms while training; evaluation ignores it.

    Raises:
        ValueError: where `beta` is no number >= 0, or there is not one piece for each level.
        TypeError: where a piece is no module.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
        >>> from ppvae.nn import MLP
        >>> pair = HierarchicalVAE(
        ...     p_z=[ConditionalNormal(MLP(2, (16,), (2, 4))), StandardNormal(2)],
        ...     p_x_given_z=ConditionalBernoulli(MLP(4, (32,), 64)),
        ...     q_z=[ConditionalNormal(MLP(64, (32,), (2, 4))), ConditionalNormal(MLP(4, (16,), (2, 2)))],
        ... )
        >>> x = torch.bernoulli(torch.full((100, 64), 0.5))
        >>> run = ppvae.fit(pair, x, epochs=1, progress=False)
        >>> sorted(ppvae.elbo(pair, x).kl)
        ['z1', 'z2']
        >>> pair.decode({"z2": torch.zeros(2)}).mean.shape
        torch.Size([64])
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
        """Z1 ~ q(z1|x), z2 ~ q(z2|z1), …, zL ~ q(zL|zL−1)."""
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            context = [x]
            for i, q_z in enumerate(self.q_z, 1):
                context.insert(0, pyro.sample(f"z{i}", q_z(*self.seen(context))))

    def encode(self, x: Tensor) -> dict[str, TorchDistribution]:
        """q(z1|x), and q of each further level at the codes, the means, of those below, by their sites.

        Args:
            x: data (..., *event).
        """
        context, levels = [x], {}
        for i, q_z in enumerate(self.q_z, 1):
            levels[f"z{i}"] = q_z(*self.seen(context))
            context.insert(0, code_of(levels[f"z{i}"]))
        return levels
