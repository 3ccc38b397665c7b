"""Objectives that treat the KL term otherwise than the ELBO: a target, a constraint, free bits, weights by level.

    loss = −Σ E_q[log p(x|z)] + n · penalty(KL),    KL per latent site and dimension, averaged over the minibatch

The β-VAE needs none of these: `VAE(beta=...)`, `fit(kl_weight=...)` and the schedules for it (`Linear`, `Cyclical`,
`Sigmoid`) weigh the KL term of any objective, and the whole penalty of these.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from ppvae._validate import check_count
from ppvae.objectives.kl import checked_latents, mean_kl, other_terms, penalty_weights
from ppvae.objectives.schedule import as_schedule
from ppvae.objectives.scheduled import ScheduledObjective, Value

MULTIPLIER = "kl_multiplier"
"""The `pyro.param` of `ConstrainedELBO`."""


class PenalizedELBO(ScheduledObjective):
    """Minus the expected log-likelihood, plus a penalty that the subclass makes of the KL terms.

    Works with `pyro.infer.SVI`, `ppvae.SVI` and `ppvae.fit`, for pairs whose guides are reparameterized. The KL of a
    site is exact where it is known and the order of the draws allows it, see `ppvae.objectives.kl`; log q of latents
    that only the guide has, and its factors, are subtracted as in any ELBO. A subsampled plate scales everything, a KL
    weight the penalty; where each datum has a scale of its own, the KL is averaged with them as weights. Likelihood and
    KL are averaged over the particles.
    """

    mixes_data = True

    @abstractmethod
    def _penalty(self, kl: dict[str, Tensor]) -> Tensor:
        """The penalty per datum, 0-d, from the mean KL of each site, (*inner plates, *dims), nats.

        The step's traces are `self._traces`, a pair for each particle.
        """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, summed over the batch.

        Raises:
            NotImplementedError: naming a site of the guide that is not reparameterized.
            ValueError: naming a site that the pair does not have, or sites whose scales differ.
        """
        rest: Any = 0.0
        kl: dict[str, Any] = {}
        for model_trace, guide_trace in self.traces(model, guide, args, kwargs):
            latents = checked_latents(model_trace, guide_trace, objective=type(self).__name__)
            total, weight = penalty_weights(latents, model_trace, guide_trace)
            rest = rest + other_terms(model_trace, guide_trace, latents) / self.num_particles
            for name in latents:
                kl[name] = kl.get(name, 0.0) + mean_kl(name, model_trace, guide_trace, weight) / self.num_particles
        return total * self._penalty(kl) - rest


class CapacityELBO(PenalizedELBO):
    r"""The KL term is driven to a target.

    .. math:: E_q[\log p(x \mid z)] - \gamma \, |\mathrm{KL}(q(z \mid x) \,\|\, p(z)) - C(t)|

    with the KL of all latents, averaged over the minibatch.

    Args:
        capacity: C in nats per datum, e.g. `Linear(epochs=100, end=25.0)`.
        gamma: γ, the weight of the deviation. It must be so large that a nat of KL costs more than it can gain.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite.

    References:
        Understanding disentangling in β-VAE (Burgess et al. 2018), arXiv 1804.03599, equation 8.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.objectives import CapacityELBO, Linear
        >>> from ppvae.models import PPCA
        >>> loss = CapacityELBO(Linear(epochs=2, end=1.5), gamma=100.0)
        >>> x = torch.randn(100, 8)
        >>> run = ppvae.fit(PPCA(8, 2, guide="amortized"), x, loss=loss, epochs=2, progress=False)
    """

    def __init__(self, capacity: Value, *, gamma: Value = 100.0, num_particles: int = 1) -> None:
        super().__init__({"capacity": capacity, "gamma": gamma}, num_particles)
        self.capacity, self.gamma = capacity, gamma

    def _penalty(self, kl: dict[str, Tensor]) -> Tensor:
        return self._values["gamma"] * (total_of(kl) - self._values["capacity"]).abs()


class ConstrainedELBO(PenalizedELBO):
    r"""The best reconstruction that a bounded KL allows, by gradient ascent on a Lagrange multiplier.

    .. math:: \max_{\theta,\phi} \min_{\lambda \ge 0} E_q[\log p(x \mid z)] - \lambda (\mathrm{KL} - \delta)

    with the KL of all latents, averaged over the minibatch. λ = exp(rate · u) grows where the KL is above δ and falls
    where it is below, as in GECO: λ ← λ exp(rate · step · (KL − δ)), the step by the optimizer of everything else
    (Adam's averages take the place of GECO's). u is the `pyro.param` "kl_multiplier": it is trained, written to
    checkpoints and restored with the pair's own parameters, as `pair.pyro_params["kl_multiplier"]`. With
    `pyro.infer.SVI` it lies in Pyro's store under this name, and goes on for a second model unless that is cleared.

    Args:
        max_kl: δ in nats per datum.
        rate: how much faster than a parameter log λ moves.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite.

    References:
        β-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al. 2017), equation
        2, which fixes λ as β. Taming VAEs (Rezende & Viola 2018), arXiv 1810.00597.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> loss, x = ConstrainedELBO(max_kl=1.0), torch.randn(100, 8)
        >>> run = ppvae.fit(PPCA(8, 2, guide="amortized"), x, loss=loss, epochs=1, progress=False)
    """

    def __init__(self, max_kl: Value, *, rate: float = 10.0, num_particles: int = 1) -> None:
        super().__init__({"max_kl": max_kl, "rate": rate}, num_particles)
        self.max_kl, self.rate = max_kl, rate

    def _penalty(self, kl: dict[str, Tensor]) -> Tensor:
        excess = total_of(kl) - self._values["max_kl"]
        u = pyro.param(MULTIPLIER, lambda: torch.zeros_like(excess))
        ascent = (u - u.detach()) * excess.detach()  # of value zero; its gradient drives u up where the KL is too large
        return (self._values["rate"] * u.detach()).exp() * excess - ascent


class FreeBitsELBO(PenalizedELBO):
    r"""Each dimension of the latents has some nats that cost nothing.

    .. math:: E_q[\log p(x \mid z)] - \sum_j \max(\kappa, \mathrm{KL}_j)

    with the KL of each dimension j averaged over the minibatch, as in the paper: one below κ has no gradient. A site
    whose distributions do not factorise (a flow, a full covariance) counts as one dimension.

    Args:
        free_bits: κ in nats, of every dimension of every site, or by the names of sites; the others have none.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite.

    References:
        Improving variational inference with inverse autoregressive flow (Kingma et al. 2016), arXiv 1606.04934,
        equation 15.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> loss, x = FreeBitsELBO(0.25), torch.randn(100, 8)
        >>> run = ppvae.fit(PPCA(8, 2, guide="amortized"), x, loss=loss, epochs=1, progress=False)
    """

    def __init__(self, free_bits: Value | Mapping[str, Value], *, num_particles: int = 1) -> None:
        self._by_site = isinstance(free_bits, Mapping)
        if isinstance(free_bits, Mapping):
            super().__init__(free_bits, num_particles, of_sites="free_bits")
        else:
            super().__init__({"free_bits": free_bits}, num_particles)
        self.free_bits = free_bits

    def _penalty(self, kl: dict[str, Tensor]) -> Tensor:
        if self._by_site:
            _check_names("free_bits", self._values, kl)
        bounds = self._values if self._by_site else dict.fromkeys(kl, self._values["free_bits"])
        # max(κ, KL) in terms that take a κ on the CPU beside a KL on a GPU
        floored = {z: (value - bounds[z]).relu() + bounds[z] if z in bounds else value for z, value in kl.items()}
        return total_of(floored)


class BalancedELBO(PenalizedELBO):
    r"""The KL term of each latent site has a weight of its own.

    .. math:: E_q[\log p(x \mid z)] - \sum_l \beta_l \, \mathrm{KL}_l

    To balance the levels of a hierarchy, or to warm them up one after another.

    Args:
        weights: β_l by the names of sites, numbers or schedules; those of the others are 1.
        num_particles: draws per datum and step.

    Raises:
        TypeError: where an option is of the wrong kind.
        ValueError: where a number is negative or not finite.

    References:
        NVAE: a deep hierarchical variational autoencoder (Vahdat & Kautz 2020), arXiv 2007.03898, appendix A.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> loss, x = BalancedELBO({"z": 0.5}), torch.randn(100, 8)
        >>> run = ppvae.fit(PPCA(8, 2, guide="amortized"), x, loss=loss, epochs=1, progress=False)
    """

    mixes_data = False  # the penalty is linear in the KL

    def __init__(self, weights: Mapping[str, Value], *, num_particles: int = 1) -> None:
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights must be a dict from the names of sites, got {type(weights).__name__}")
        super().__init__(weights, num_particles, of_sites="weights")
        self.weights = weights

    def _penalty(self, kl: dict[str, Tensor]) -> Tensor:
        _check_names("weights", self._values, kl)
        return total_of({z: self._values.get(z, 1.0) * value for z, value in kl.items()})


def beta_from_norm(beta_norm: float, *, latent_dim: int, data_dim: int) -> float:
    """β of a normalised weight, β = β_norm · d / k: comparable across sizes of data and latents.

    Args:
        beta_norm: β_norm = β k / d.
        latent_dim: k.
        data_dim: d.

    References:
        β-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al. 2017).

    Example:
        >>> beta_from_norm(0.25, latent_dim=10, data_dim=784)
        19.6
    """
    check_count("latent_dim", latent_dim)
    check_count("data_dim", data_dim)
    return as_schedule(beta_norm, name="beta_norm")(0.0) * data_dim / latent_dim


def total_of(kl: dict[str, Tensor]) -> Tensor:
    """The KL of all sites and dimensions together, 0-d, nats."""
    return torch.stack([value.sum() for value in kl.values()]).sum()


def _check_names(argument: str, named: Mapping[str, Any], kl: Mapping[str, Any]) -> None:
    unknown = [name for name in named if name not in kl]
    if unknown:
        raise ValueError(f"{argument} names {unknown}, which are no latents of the pair: it has {list(kl)}")
