"""The deep Markov model: a state-space model whose transition and emission are nets.

Krishnan, Shalit & Sontag 2017, "Structured inference networks for nonlinear state space models", arXiv 1609.09869.

    z_1 ~ p(z_1)      z_t ~ p(z_t|z_{t-1})      x_t ~ p(x_t|z_t)      guide: z_t ~ q(z_t|z_{t-1}, x_t, ..., x_T)

    log p(x) ≥ E_q[Σ_t log p(x_t|z_t)] − KL(q(z_{1:T}|x) ‖ p(z_{1:T}))

The states are one site z, the series one site x: how many steps there are changes no trace. With linear maps and normal
distributions it is the model of the Kalman filter.
"""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ppvae._validate import check_count, check_flag, check_number
from ppvae.distributions.markov import MarkovChain, of_steps
from ppvae.means import mean_of
from ppvae.models.base import check_pieces
from ppvae.nn.sequence import check_lengths
from ppvae.pair import KLWeight


class DeepMarkovModel(nn.Module):
    """A generative model of series x_1, ..., x_T, each step of which has a latent state z_t.

    Its arguments are series `x`, (n, T, *event), and `lengths`, (n,), how many steps of each there are; None is all.
    What stands after the length of a series changes no number, but has to be finite.

    Args:
        p_z1: of the first state, a module `() -> p(z_1)`, e.g. `StandardNormal(k)`.
        p_z_given_z: transition, a module `z -> p(z_t|z_{t-1})`, e.g. `ConditionalNormal(GatedTransition(k, 64))`.
        p_x_given_z: emission, a module `z -> p(x_t|z_t)`, e.g. `ConditionalBernoulli(MLP(k, (64,), d))`.
        q_z_given_x: posterior of all states, a module `(x, lengths) -> q(z|x)`: a `MarkovPosterior`.
        beta: weight of the KL term while training; evaluation ignores it.

    Raises:
        ValueError: where `beta` is no number >= 0.
        TypeError: where a piece is no module.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, MarkovPosterior, StandardNormal
        >>> from ppvae.nn import MLP, RNN, Combiner, GatedTransition
        >>> dmm = DeepMarkovModel(
        ...     p_z1=StandardNormal(2),
        ...     p_z_given_z=ConditionalNormal(GatedTransition(2, 16)),
        ...     p_x_given_z=ConditionalBernoulli(MLP(2, (16,), 12)),
        ...     q_z_given_x=MarkovPosterior(
        ...         RNN(12, 16, direction="backward"), ConditionalNormal(Combiner(2, 16, (2, 2))), latent_dim=2
        ...     ),
        ... )
        >>> x, lengths = torch.bernoulli(torch.full((100, 9, 12), 0.5)), torch.randint(1, 10, (100,))
        >>> run = ppvae.fit(dmm, (x, lengths), epochs=1, progress=False)
        >>> ppvae.log_marginal(dmm, x, lengths, num_samples=10).values.shape
        torch.Size([100])
        >>> dmm.sample(3, num_steps=20).shape
        torch.Size([3, 20, 12])
    """

    def __init__(
        self,
        p_z1: nn.Module,
        p_z_given_z: nn.Module,
        p_x_given_z: nn.Module,
        q_z_given_x: nn.Module,
        *,
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        check_number("beta", beta, at_least=0)
        check_pieces(p_z1=p_z1, p_z_given_z=p_z_given_z, p_x_given_z=p_x_given_z, q_z_given_x=q_z_given_x)
        self.p_z1 = p_z1
        self.p_z_given_z = p_z_given_z
        self.p_x_given_z = p_x_given_z
        self.q_z_given_x = q_z_given_x
        self.beta = beta

    def model(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Z ~ p(z_1) Π p(z_t|z_{t-1}), (T, k) as one event; x ~ Π p(x_t|z_t)."""
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            z = pyro.sample("z", self.p_z(x.shape[1], lengths))
            pyro.sample("x", of_steps(self.p_x_given_z(z), lengths), obs=x)

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Z ~ q(z|x)."""
        if lengths is not None and pyro.distributions.is_validation_enabled():
            check_lengths(lengths, x.shape[1])
        with pyro.plate("data", len(x)), KLWeight(self.beta):
            pyro.sample("z", self.q_z_given_x(x, lengths))

    def p_z(self, num_steps: int, lengths: Tensor | None = None) -> MarkovChain:
        """The prior of trajectories, of event shape (num_steps, k)."""
        return MarkovChain(self.p_z1(), self.p_z_given_z, num_steps, lengths=lengths)

    def encode(self, x: Tensor, lengths: Tensor | None = None) -> TorchDistribution:
        """q(z|x) for x of shape (..., T, *event): its `.sample()` is a trajectory (..., T, k)."""
        return self.q_z_given_x(x, lengths)

    def decode(self, z: Tensor) -> TorchDistribution:
        """p(x_t|z_t) of every step, for z of shape (..., T, k)."""
        return self.p_x_given_z(z)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, lengths: Tensor | None = None, *, num_samples: int = 100) -> Tensor:
        """E[E[x|z]] over draws of q(z|x), shape (..., T, *event); of steps after the length, at the state zero."""
        z = self.encode(x, lengths).sample((check_count("num_samples", num_samples),))
        return mean_of(self.decode(z)).mean(0)

    @torch.no_grad()
    def sample(self, num_samples: int, *, num_steps: int, mean: bool = False) -> Tensor:
        """Draws series from the model: z_1 ~ p(z_1), z_t ~ p(z_t|z_{t-1}), x_t ~ p(x_t|z_t).

        Args:
            num_samples: n, how many.
            num_steps: T, how long.
            mean: whether to return E[x|z] in place of a draw of x.

        Returns:
            Series of shape (n, T, *event).
        """
        check_flag("mean", mean)
        chain = self.p_z(check_count("num_steps", num_steps))
        p_x = self.decode(chain.sample((check_count("num_samples", num_samples),)))
        return mean_of(p_x) if mean else p_x.sample()
