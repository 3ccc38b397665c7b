"""β-TCVAE: the KL term in three parts, of which the dependence among the latents has a weight of its own.

With q(z) = (1/N) Σ_n q(z|x_n) of all N data,

    E KL(q(z|x) ‖ p(z))  =  I(x; z)  +  KL(q(z) ‖ Π_j q(z_j))  +  Σ_j KL(q(z_j) ‖ p(z_j))
                            information    total correlation        dimensions against the prior
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ppvae._validate import check_count
from ppvae.objectives.codes import check_several, codes_of
from ppvae.objectives.regularized import PenalizedELBO, total_of
from ppvae.objectives.scheduled import Value
from ppvae.traces import Site, leaf

Weights = Literal["stratified", "minibatch", "paper"]
"""How q(z) of all data is estimated from a minibatch, see `TotalCorrelationELBO`."""


class TotalCorrelationELBO(PenalizedELBO):
    r"""The ELBO with weights of its own for the three parts of the KL term (β-TCVAE).

    .. math:: E_q[\log p(x \mid z)] - \alpha \, I(x; z) - \beta \, \mathrm{KL}(q(z) \,\|\, \textstyle\prod_j q(z_j))
              - \gamma \sum_j \mathrm{KL}(q(z_j) \,\|\, p(z_j))

    For pairs with one latent of each datum whose guide factorises over its dimensions. The history shows the parts, in
    nats per datum, as `mutual_information`, `total_correlation` and `dimensions_kl`; they sum to the KL of the draws.
    The loss has the KL in closed form where that is known: with α = γ = 1 it is minus the ELBO plus (β − 1) times the
    total correlation. A KL weight multiplies the whole penalty. Of several data sets (`JointELBO`) each has a q(z) of
    its own.

    q(z) of a draw z_i is estimated from the minibatch of B data that it belongs to:

    - "stratified": q(z_i|x_i) / N + (N − 1) / (N (B − 1)) Σ_{j≠i} q(z_i|x_j), unbiased for q(z_i) where a minibatch
      holds no datum twice, and exact at B = N. Its log is too low in the mean, the less so the larger the minibatch.
    - "minibatch": (1 / NB) Σ_j q(z_i|x_j), the paper's minibatch-weighted sampling. It is too low by a factor of about
      N, once in log q(z) and k times in Σ_j log q(z_j): a constant, which leaves the gradient and not the values.
    - "paper": the weights of the published code for the paper's minibatch stratified sampling, to reproduce it. They
      have 1/N in the first column where it belongs on the diagonal.

    Args:
        beta: β, the weight of the total correlation.
        alpha: α, the weight of the information.
        gamma: γ, the weight of the dimensions' KL.
        num_data: N, of how many data the minibatches are a part. `fit` knows it, but for iterables such as a
            `DataLoader`, and refuses another; with an SVI of your own it must be given.
        weights: how q(z) is estimated.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite, or `weights` is none of those above.

    References:
        Isolating sources of disentanglement in variational autoencoders (Chen et al. 2018), arXiv 1802.04942.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
        >>> from ppvae.models import VAE
        >>> from ppvae.nn import MLP
        >>> decoder, encoder = MLP(2, (16,), 8), MLP(8, (16,), (2, 2))
        >>> vae = VAE(StandardNormal(2), ConditionalBernoulli(decoder), ConditionalNormal(encoder))
        >>> x = torch.bernoulli(torch.full((100, 8), 0.5))
        >>> run = ppvae.fit(vae, x, loss=TotalCorrelationELBO(4.0), epochs=1, progress=False)
        >>> parts = [run.history[0][name] for name in ("mutual_information", "total_correlation", "dimensions_kl")]
        >>> abs(sum(parts) - run.history[0]["kl_z"]) < 1e-4
        True
    """

    def __init__(
        self,
        beta: Value,
        *,
        alpha: Value = 1.0,
        gamma: Value = 1.0,
        num_data: int | None = None,
        weights: Weights = "stratified",
        num_particles: int = 1,
    ) -> None:
        super().__init__({"beta": beta, "alpha": alpha, "gamma": gamma}, num_particles)
        if weights not in get_args(Weights):
            raise ValueError(f"weights must be one of {', '.join(get_args(Weights))}, got {weights!r}")
        self.beta, self.alpha, self.gamma, self.weights = beta, alpha, gamma, weights
        self.num_data = None if num_data is None else check_count("num_data", num_data)
        self._num_data = self.num_data

    def set_data(self, *num_data: int | None) -> None:
        """Takes the number of data that the minibatches are a part of, where none was given.

        Raises:
            ValueError: where another one was given.
        """
        (known,) = num_data
        if known is not None and self.num_data not in (None, known):
            raise ValueError(f"num_data must be that of the training data, {known}, got {self.num_data}")
        self._num_data = self.num_data if known is None else known

    def _penalty(self, kl: dict[str, Tensor]) -> Tensor:
        alpha, beta, gamma = (self._values[name] for name in ("alpha", "beta", "gamma"))
        information, correlation, dimensions = self._parts()
        self._record(mutual_information=information, total_correlation=correlation, dimensions_kl=dimensions)
        correlation, dimensions = correlation.mean(), dimensions.mean()
        return alpha * total_of(kl) + (beta - alpha) * correlation + (gamma - alpha) * dimensions

    def _parts(self) -> Tensor:
        """The three parts of the KL at the draws of each datum, (3, n), averaged over the particles, nats."""
        of_particles = []
        for traces in self._traces:
            q, p = codes_of(*traces, objective=type(self).__name__)
            n = check_several(q, objective=type(self).__name__)
            log_q_z, log_q_dims = log_aggregated(q, self.weights, self._checked_num_data(n))
            of_particles.append(torch.stack([q.log_prob - log_q_z, log_q_z - log_q_dims, log_q_dims - p.log_prob]))
        return torch.stack(of_particles).mean(0)

    def _record(self, **parts: Tensor) -> None:
        for name, values in parts.items():
            self.record(name, values.sum())

    def _checked_num_data(self, n: int) -> int:
        """N, where a minibatch of n says something of it."""
        if self._num_data is None:
            raise ValueError(
                "num_data must be given, the number of data that the minibatches are of: only fit knows it, of data in "
                "memory and of sources that tell it"
            )
        if n > self._num_data:
            raise ValueError(f"num_data must be at least the {n} data of a minibatch, got {self._num_data}")
        return self._num_data


def log_aggregated(site: Site, weights: Weights, num_data: int) -> tuple[Tensor, Tensor]:
    """Estimates of log q(z) and of Σ_j log q(z_j) at the draws of a minibatch, (n,) each, nats.

    Args:
        site: of the guide, see `codes_of`.
        weights: of q(z_i|x_j) in the estimate.
        num_data: N.
    """
    z, n = site.value, len(site.value)
    log_q = leaf(site.fn).log_prob(z.unsqueeze(1))  # [i, j] = log q(z_i|x_j) of each dimension
    log_q = log_q.expand(n, n, *z.shape[1:]).reshape(n, n, -1)
    log_w = log_weights(weights, n, num_data, log_q)
    joint = (log_q.sum(-1) + log_w).logsumexp(1)
    return joint, (log_q + log_w.unsqueeze(-1)).logsumexp(1).sum(-1)


def log_weights(weights: Weights, n: int, num_data: int, like: Tensor) -> Tensor:
    """The log-weights of q(z_i|x_j) in q(z_i), (n, n), see `TotalCorrelationELBO`."""
    if weights == "minibatch":
        return like.new_full((n, n), -math.log(n * num_data))
    if weights == "stratified":
        others = like.new_full((n, n), math.log((num_data - 1) / (num_data * (n - 1))))
        own = torch.eye(n, dtype=torch.bool, device=like.device)
        return torch.where(own, -math.log(num_data), others)
    m = n - 1
    rest = math.log((num_data - m) / (num_data * m))
    log_w = [[-math.log(num_data), rest, *[-math.log(m)] * (m - 1)] for _ in range(n)]
    log_w[m - 1][0] = rest
    return torch.tensor(log_w, dtype=like.dtype, device=like.device)
