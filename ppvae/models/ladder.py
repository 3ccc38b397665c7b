"""The ladder variational autoencoder: a hierarchy whose guide goes down the model's own path, corrected by the data.

Sønderby et al. 2016, "Ladder variational autoencoders", arXiv 1602.02282.

    zL ~ p(zL)   …   z1 ~ p(z1|z2)   x ~ p(x|z1)              d1 = d1(x)   d2 = d2(d1)   …   dL = dL(dL−1)

    guide: zL ~ q(zL|dL)   zi ~ q(zi|x,zi+1) ∝ q(zi|di) p(zi|zi+1)  for i = L−1, …, 1

    log p(x) ≥ E_q[log p(x|z1)] − KL(q(zL|x) ‖ p(zL)) − Σ_i E_q[KL(q(zi|x,zi+1) ‖ p(zi|zi+1))]
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae.distributions.product import precision_weighted
from ppvae.means import code_of
from ppvae.models.levels import Levels, modules_of_levels
from ppvae.pair import KLWeight


class LadderVAE(Levels):
    """A generative model with latents z1 … zL, from the data upwards, and a guide that shares its top-down path.

    A deterministic path goes up from the data; on the way down the guide multiplies what it found at each level with
    the model's own prior of that level, see `ppvae.distributions.precision_weighted`. The modules in `p_z` thereby
    belong to both. The paper trains it with batch norm in all nets and a warm-up of the KL weight,
    `ppvae.fit(..., kl_weight=Linear(200))`. Both of Pyro's ELBOs hold: `TraceMeanField_ELBO` has every level's KL in
    closed form.

    Batch norm makes a training step's loss depend on the whole minibatch: its statistics are over all data and
    particles together, and as `p_z` runs in the guide and in the model, its running ones move twice a step.
    Evaluation uses the running ones, so that the likelihood of a datum is its own.

    Args:
        p_z: the priors p(z1|z2), …, p(zL), modules that take the level above them and return diagonal normal
            distributions; the last takes nothing and may return any other.
        p_x_given_z: likelihood, a module `z1 -> p(x|z1)`.
        d: the deterministic path, nets `x -> d1`, `d1 -> d2`, …, `dL−1 -> dL`.
        q_z_given_d: what each level of it says of its latent, modules `di -> q(zi|di)` that return diagonal normal
            distributions; that of the last may be any other.
        skip: whether every conditional of the model is given all levels above its own, the nearest first:
            p(x|z1, …, zL) and p(zi|zi+1, …, zL). `ppvae.nn.ConcatInputs` is a net of several inputs.
        beta: weight of the KL terms while training; evaluation ignores it.

    Raises:
        ValueError: where `beta` is no number >= 0, or there is not one piece for each level.
        TypeError: where a piece is no module.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
        >>> from ppvae.nn import MLP
        >>> pair = LadderVAE(
        ...     p_z=[ConditionalNormal(MLP(2, (16,), (2, 4), norm="batch")), StandardNormal(2)],
        ...     p_x_given_z=ConditionalBernoulli(MLP(4, (32,), 64, norm="batch")),
        ...     d=[MLP(64, (32,), 32, norm="batch"), MLP(32, (16,), 16, norm="batch")],
        ...     q_z_given_d=[ConditionalNormal(MLP(32, (), (2, 4))), ConditionalNormal(MLP(16, (), (2, 2)))],
        ... )
        >>> x = torch.bernoulli(torch.full((100, 64), 0.5))
        >>> run = ppvae.fit(pair, x, epochs=2, kl_weight=ppvae.objectives.Linear(1), progress=False)
        >>> pair.eval().reconstruct(x).shape
        torch.Size([100, 64])
    """

    def __init__(
        self,
        p_z: Sequence[nn.Module],
        p_x_given_z: nn.Module,
        d: Sequence[nn.Module],
        q_z_given_d: Sequence[nn.Module],
        *,
        skip: bool = False,
        beta: float = 1.0,
    ) -> None:
        super().__init__(p_z, p_x_given_z, skip=skip, beta=beta)
        self.d = modules_of_levels("d", d, len(self.p_z))
        self.q_z_given_d = modules_of_levels("q_z_given_d", q_z_given_d, len(self.p_z))

    def guide(self, x: Tensor) -> None:
        """ZL ~ q(zL|x), then zi ~ q(zi|x,zi+1) down to z1."""
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            found, z = self.found(x), list[Tensor]()
            for name, p_z in self.downwards():
                z.insert(0, pyro.sample(name, self.corrected(found[name], p_z, z)))

    def found(self, x: Tensor) -> dict[str, TorchDistribution]:
        """q(z1|d1), …, q(zL|dL): what the data alone say of each level, by its site, for x of shape (..., *event)."""
        levels = {}
        for i, (d, q_z) in enumerate(zip(self.d, self.q_z_given_d, strict=True), 1):
            x = d(x)
            levels[f"z{i}"] = q_z(x)
        return levels

    def corrected(self, found: TorchDistribution, p_z: nn.Module, above: list[Tensor]) -> TorchDistribution:
        """q(zi|x,zi+1) from q(zi|di), the prior of that level and the levels above; at the top, q(zL|dL) itself."""
        return precision_weighted(p_z(*self.seen(above)), found) if above else found

    def encode(self, x: Tensor) -> dict[str, TorchDistribution]:
        """q(zL|x), and q of each further level at the codes, the means, of those above, by their sites, z1 first.

        Args:
            x: data (..., *event).
        """
        levels, z = self.found(x), list[Tensor]()
        for name, p_z in self.downwards():
            levels[name] = self.corrected(levels[name], p_z, z)
            z.insert(0, code_of(levels[name]))
        return levels
