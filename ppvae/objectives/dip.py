"""DIP-VAE: the covariance of the codes of all data is drawn to that of the prior, the identity."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ppvae.objectives.codes import check_several, codes_of
from ppvae.objectives.regularized import PenalizedELBO, total_of
from ppvae.objectives.scheduled import Value

Kind = Literal["I", "II"]
"""Of which covariance: that of the means of q(z|x), or that of q(z)."""


class DIPELBO(PenalizedELBO):
    r"""The ELBO minus a penalty on the covariance of the codes (DIP-VAE I and II).

    .. math:: E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))
              - \lambda_{od} \sum_{i \ne j} C_{ij}^2 - \lambda_d \sum_i (C_{ii} - 1)^2

    with C = Cov[μ(x)] of the means of q(z|x) in DIP-VAE I, and Cov[μ(x)] + E[Var(z|x)] in DIP-VAE II, which is the
    covariance of q(z) = (1/N) Σ_n q(z|x_n). Both are estimated from the minibatch, Cov with n − 1 in the denominator.

    For pairs with one latent of each datum, whose guide factorises over its dimensions and has moments in closed form,
    and a prior with covariance I. The history shows the penalty as `covariance_penalty`, and a KL weight multiplies it
    with the KL.

    Args:
        off_diagonal: λ_od.
        diagonal: λ_d.
        kind: "I" or "II". In I the variances of the means cannot all be one while q(z) is the prior: the paper takes
            λ_d ten times λ_od there, and equal to it in II.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite, or `kind` is another.

    References:
        Variational inference of disentangled latent concepts from unlabeled observations (Kumar et al. 2018), arXiv
        1711.00848.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
        >>> from ppvae.models import VAE
        >>> from ppvae.nn import MLP
        >>> decoder, encoder = MLP(2, (16,), 8), MLP(8, (16,), (2, 2))
        >>> vae = VAE(StandardNormal(2), ConditionalBernoulli(decoder), ConditionalNormal(encoder))
        >>> x = torch.bernoulli(torch.full((100, 8), 0.5))
        >>> run = ppvae.fit(vae, x, loss=DIPELBO(10.0, 10.0), epochs=1, progress=False)
        >>> run.history[0]["covariance_penalty"] > 0
        True
    """

    def __init__(self, off_diagonal: Value, diagonal: Value, *, kind: Kind = "II", num_particles: int = 1) -> None:
        super().__init__({"off_diagonal": off_diagonal, "diagonal": diagonal}, num_particles)
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        self.off_diagonal, self.diagonal, self.kind = off_diagonal, diagonal, kind

    def _penalty(self, kl: dict[str, Tensor]) -> Tensor:
        penalties = []
        for traces in self._traces:
            q, _ = codes_of(*traces, objective=type(self).__name__)
            n = check_several(q, objective=type(self).__name__)
            penalties.append(self._of_covariance(self._covariance(q.fn.mean, q.fn.variance)))
        penalty = torch.stack(penalties).mean()
        self.record("covariance_penalty", n * penalty)
        return total_of(kl) + penalty

    def _covariance(self, mean: Tensor, variance: Tensor) -> Tensor:
        """C of a minibatch, (k, k), from moments (n, *event)."""
        mean, variance = mean.flatten(1), variance.flatten(1)
        centred = mean - mean.mean(0)
        covariance = centred.T @ centred / (len(mean) - 1)
        return covariance if self.kind == "I" else covariance + torch.diag(variance.mean(0))

    def _of_covariance(self, covariance: Tensor) -> Tensor:
        """The penalty of a covariance, 0-d."""
        variances = covariance.diagonal()
        off_diagonal = covariance.square().sum() - variances.square().sum()
        on_diagonal = (variances - 1).square().sum()
        return self._values["off_diagonal"] * off_diagonal + self._values["diagonal"] * on_diagonal
