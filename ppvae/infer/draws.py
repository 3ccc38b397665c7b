"""What one look at a block of data gives: samples' log-probabilities, and the quantities made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppvae.pair import latent_of


@dataclass(frozen=True)
class Draws:
    """Samples of a block of data and their unscaled log-probabilities, in nats.

    Discrete latents y that the guide enumerates are not drawn: there is one row for each of their e joint values,
    with the other latents z drawn given it. So are those that the model enumerates; where there are none, e = 1.

    Attributes:
        start: index of the block's first datum.
        log_likelihood: Σ log p over the observed sites, shape (e, s, n).
        log_prior: log p of each latent site, (e, s, n).
        log_posterior: log q of each guide site, (e, s, n); auxiliary sites of the guide included.
        enumerated: the guide's sites that are summed over.
        marginalized: the sites that only the model has and that are summed over; their values vary fastest in e.
        num_marginalized: how many joint values these have.
    """

    start: int
    log_likelihood: Tensor
    log_prior: dict[str, Tensor]
    log_posterior: dict[str, Tensor]
    enumerated: tuple[str, ...] = ()
    marginalized: tuple[str, ...] = ()
    num_marginalized: int = 1

    def terms(self) -> Tensor:
        """Every log-probability, side by side: (sites, e, s, n)."""
        return torch.stack([self.log_likelihood, *self.log_prior.values(), *self.log_posterior.values()])

    def log_ratio(self) -> Tensor:
        """Log p(x, y, z) − log q(z|x, y) at each value of y, shape (e, s, n)."""
        drawn = [value for site, value in self.log_posterior.items() if site not in self.enumerated]
        return self.log_likelihood + sum(self.log_prior.values()) - sum(drawn)

    def log_weight(self) -> Tensor:
        """Log w = log Σ_y p(x, y, z) / q(z|x, y), shape (s, n): the mean of w over s estimates p(x)."""
        ratio = self.log_ratio()
        return ratio[0] if len(ratio) == 1 else ratio.logsumexp(0)

    def elbo(self) -> Tensor:
        """Σ_y q(y|x) (log p(x, y, z) − log q(z|x, y) − log q(y|x)), (s, n): its mean over s estimates the ELBO."""
        log_q = self._log_q()
        return self.log_ratio()[0] if log_q is None else self._mean(self.log_ratio() - log_q)

    def reconstruction(self) -> Tensor:
        """E[log p(x|y, z)] over the enumerated y, (s, n)."""
        return self._mean(self.log_likelihood)

    def kl(self) -> dict[str, Tensor]:
        """Log q − log p of each site, (s, n): its mean over s estimates KL(q ‖ p) of that site."""
        zero = torch.zeros_like(self.log_likelihood)
        terms = {z: -log_p for z, log_p in self.log_prior.items()}
        for site, log_q in self.log_posterior.items():
            z = latent_of(site, self.log_prior)
            terms[z] = terms.get(z, zero) + log_q
        if self.marginalized:  # their q is p(y|x, z), which the sum over them makes exact
            joint = self._log_marginalized()
            for name in self.marginalized:
                joint = joint + terms.pop(name)
            terms[",".join(self.marginalized)] = joint
        return {name: self._mean(value) for name, value in terms.items()}

    def _log_q(self) -> Tensor | None:
        """The log-probability of each joint value, (e, s, n); None where nothing is summed over."""
        if not self.enumerated and not self.marginalized:
            return None
        log_q = torch.zeros_like(self.log_likelihood)
        for name in self.enumerated:
            log_q = log_q + self.log_posterior[name]
        return log_q + self._log_marginalized() if self.marginalized else log_q

    def _log_marginalized(self) -> Tensor:
        """Log p(y|x, z) of the values of the sites that only the model has, (e, s, n)."""
        grouped = self.log_ratio().unflatten(0, (-1, self.num_marginalized))
        log_p = grouped.log_softmax(1)
        impossible = grouped.amax(1, keepdim=True) == -torch.inf  # x is so at every value: count them alike
        return torch.where(impossible, -math.log(self.num_marginalized), log_p).flatten(0, 1)

    def _mean(self, values: Tensor) -> Tensor:
        """The mean over the summed values, (s, n); values of probability zero do not count, not even infinite ones."""
        log_q = self._log_q()
        if log_q is None:
            return values[0]
        q = log_q.exp()
        return torch.where(q == 0, 0.0, q * values).sum(0)
