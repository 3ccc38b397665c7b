"""Objectives that bring the aggregated posterior q(z) to the prior by a divergence of draws: WAE and InfoVAE."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ppvae._validate import check_number
from ppvae.objectives.divergence import MMD, Critic, Divergence
from ppvae.objectives.drawn_codes import MatchingObjective
from ppvae.objectives.scheduled import Value


class WAE(MatchingObjective):
    r"""The Wasserstein autoencoder: a cost of reconstructions, and a penalty on codes that do not fill the prior.

    .. math:: -E_q[\log p(x \mid z)] + \lambda\, D(q(z), p(z))

    The cost is −log p(x|z): with `ConditionalNormal(net, scale=s)` the squared error over 2 s² and a constant, so that
    the paper's λ is in units of that. D is an MMD of the codes of a minibatch and as many draws of the prior (WAE-MMD),
    or `Critic(net, "non-saturating")` (WAE-GAN, which is `AAE`), or a function of two tensors of draws (n, k) of yours.

    The history has D, unweighted, as `mmd` (as `aggregated_kl` of a critic): unbiased, and so negative now and then. It
    is no term of a bound. Where the guide has a density, `elbo` is the ELBO of the pair beside it. A prior of its own
    parameters is not trained by D.

    Args:
        divergence: D.
        weight: λ, a number or a schedule.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite; before training, where a minibatch has one datum alone.

    References:
        Wasserstein auto-encoders (Tolstikhin et al. 2018), arXiv 1711.01558.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalDelta, ConditionalNormal, StandardNormal
        >>> from ppvae.models import VAE
        >>> from ppvae.nn import MLP
        >>> decoder, encoder = ConditionalNormal(MLP(2, (), 8), scale=0.5), ConditionalDelta(MLP(8, (), 2))
        >>> vae, x = VAE(StandardNormal(2), decoder, encoder), torch.randn(100, 8)
        >>> run = ppvae.fit(vae, x, x[:20], loss=WAE(weight=10.0), epochs=1, progress=False)
        >>> {"mmd", "valid_loss"} <= run.history[0].keys(), "elbo" in run.history[0]
        (True, False)
    """

    def __init__(self, divergence: Divergence | None = None, *, weight: Value = 10.0, num_particles: int = 1) -> None:
        divergence = MMD() if divergence is None else divergence
        super().__init__(divergence, weight, num_particles, called="weight", column=_column(divergence), kl_weight=0.0)

    def others(self, z: Tensor, prior: Callable[[], Tensor]) -> Tensor:
        """Draws of the prior."""
        return prior()


class InfoVAE(MatchingObjective):
    r"""The ELBO with one weight on the information that codes have of data, and one on how well they fill the prior.

    .. math:: -E_q[\log p(x \mid z)] + (1 - \alpha)\, \mathrm{KL}(q(z \mid x) \,\|\, p(z))
        + (\alpha + \lambda - 1)\, D(q(z), p(z))

    α = 0 and λ = 1 is the ELBO, α = 0 and λ = β the β-VAE where D is the KL; α = 1 has no KL term (MMD-VAE).

    Args:
        alpha: α, at most 1.
        lam: λ, at least 1 − α.
        divergence: D, see `WAE`.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is out of range; before training, where a minibatch has one datum alone.

    References:
        InfoVAE: balancing learning and inference in variational autoencoders (Zhao et al. 2019), arXiv 1706.02262,
        equation 6.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> loss, x = InfoVAE(alpha=0.5, lam=10.0), torch.randn(100, 8)
        >>> run = ppvae.fit(PPCA(8, 2, guide="amortized"), x, loss=loss, epochs=1, progress=False)
    """

    def __init__(
        self, *, alpha: float = 0.0, lam: float = 10.0, divergence: Divergence | None = None, num_particles: int = 1
    ) -> None:
        check_number("alpha", alpha, at_most=1)
        check_number("lam", lam, at_least=1 - alpha)
        divergence = MMD() if divergence is None else divergence
        super().__init__(
            divergence,
            alpha + lam - 1,
            num_particles,
            called="weight",
            column=_column(divergence),
            kl_weight=1.0 - alpha,
        )
        self.alpha, self.lam = alpha, lam

    def others(self, z: Tensor, prior: Callable[[], Tensor]) -> Tensor:
        """Draws of the prior."""
        return prior()


def _column(divergence: Divergence) -> str:
    """What the divergence from the prior is called in the history."""
    if isinstance(divergence, Critic):
        return "aggregated_kl"
    return "mmd" if isinstance(divergence, MMD) else "divergence"
