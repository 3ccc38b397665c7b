"""Objectives with a critic: of the aggregated posterior against the prior, or against the product of its marginals."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ppvae.objectives.divergence import Critic, EncoderLoss, permuted
from ppvae.objectives.drawn_codes import MatchingObjective
from ppvae.objectives.scheduled import Value


class AAE(MatchingObjective):
    r"""The adversarial autoencoder: the codes of all data together, q(z), are to fill the prior, by a critic.

    .. math:: -E_q[\log p(x \mid z)] + \lambda\, E_q[\ell(T(z))], \qquad T \approx \log \frac{q(z)}{p(z)}

    There is no KL term: a posterior may be as narrow as it likes, or a point (`ConditionalDelta`). The critic trains in
    the same step, by the loss of `Critic`; neither loss sends a gradient to the other's parameters, so that both are
    those taken apart. A critic's own learning rate is `param_groups={"objective.critic.*": {"lr": 1e-4}}` of `fit`.

    The history has the mean of T over the codes as `aggregated_kl`, an estimate of KL(q(z) ‖ p(z)) by this critic,
    which is no bound; and the critic's loss as `critic`: 2 log 2 = 1.386 where it cannot tell codes from draws of the
    prior. Where the guide has a density, `elbo` is the ELBO of the pair beside them. The loss holds all three parts.

    Args:
        critic: a net from codes (n, k) to one number each; of a pair with several latents, from all of them joined.
        weight: λ, a number or a schedule; in nats, as log p(x|z) is.
        encoder_loss: ℓ, "non-saturating" (log (1 + exp T), as in the paper) or "ratio" (T).
        critic_steps: steps of the critic for each of the pair. With `pyro.infer.SVI` it is one.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite.

    References:
        Adversarial autoencoders (Makhzani et al. 2015), arXiv 1511.05644. With another weight it is the WAE-GAN of
        Tolstikhin et al. 2018, arXiv 1711.01558, algorithm 1.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> from ppvae.nn import MLP
        >>> loss, x = AAE(MLP(2, (32,), 1)), torch.randn(100, 8)
        >>> run = ppvae.fit(PPCA(8, 2, guide="amortized"), x, loss=loss, epochs=1, progress=False)
        >>> {"aggregated_kl", "critic", "elbo"} <= run.history[0].keys()
        True
    """

    def __init__(
        self,
        critic: nn.Module,
        *,
        weight: Value = 1.0,
        encoder_loss: EncoderLoss = "non-saturating",
        critic_steps: int = 1,
        num_particles: int = 1,
    ) -> None:
        divergence = Critic(critic, encoder_loss, critic_steps)
        super().__init__(divergence, weight, num_particles, called="weight", column="aggregated_kl", kl_weight=0.0)

    def others(self, z: Tensor, prior: Callable[[], Tensor]) -> Tensor:
        """Draws of the prior."""
        return prior()


class FactorVAE(MatchingObjective):
    r"""The ELBO, less the total correlation of the codes, by a critic.

    .. math:: E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z)) - \gamma\, E_q[T(z)], \qquad
        T \approx \log \frac{q(z)}{\prod_j q(z_j)}

    The critic tells codes from codes whose dimensions are permuted among the data, each dimension in an order of its
    own. Its loss does not reach the encoder. The history has the mean of T as `total_correlation`: an estimate by this
    critic, no bound, and negative where the critic lags behind; and the critic's loss as `critic`.

    Args:
        critic: a net from codes (n, k) to one number each; of a pair with several latents, from all of them joined.
        gamma: γ, a number or a schedule.
        critic_steps: steps of the critic for each of the pair. With `pyro.infer.SVI` it is one.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite.

    References:
        Disentangling by factorising (Kim & Mnih 2018), arXiv 1802.05983, algorithm 2.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> from ppvae.nn import MLP
        >>> loss, x = FactorVAE(MLP(2, (32,), 1), gamma=5.0), torch.randn(100, 8)
        >>> run = ppvae.fit(PPCA(8, 2, guide="amortized"), x, loss=loss, epochs=1, progress=False)
        >>> {"total_correlation", "critic", "elbo"} <= run.history[0].keys()
        True
    """

    def __init__(
        self, critic: nn.Module, *, gamma: Value = 10.0, critic_steps: int = 1, num_particles: int = 1
    ) -> None:
        divergence = Critic(critic, "ratio", critic_steps)
        super().__init__(divergence, gamma, num_particles, called="gamma", column="total_correlation", kl_weight=1.0)

    def others(self, z: Tensor, prior: Callable[[], Tensor]) -> Tensor:
        """The codes with their dimensions permuted, which say nothing of each other then."""
        return permuted(z.detach())
