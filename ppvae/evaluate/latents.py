"""What the latents of a pair hold: how much of the KL is information, and which units and sites have collapsed.

Over the n data that are given, with q(z) = (1/n) Σ_j q(z|x_j) the aggregated posterior,

    mean KL(q(z|x) ‖ p(z))  =  I(x; z)  +  KL(q(z) ‖ p(z))          (Hoffman & Johnson 2016)
                               information  mismatch with the prior

A unit is active where the variance over the data of its posterior mean is above 0.01 (Burda et al. 2016). Without
information a latent has collapsed: the decoder does not use it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppvae._validate import check_count, check_memory
from ppvae.evaluate.aggregated import SiteDraws, draw_sites, independent_sites, log_aggregated
from ppvae.evaluate.estimates import standard_error
from ppvae.inputs import takes_data
from ppvae.pair import check_data
from ppvae.result import Result
from ppvae.sampling.eval_mode import validation
from ppvae.sampling.posterior_draws import posterior_sampler

ACTIVE = 0.01
"""The variance of the posterior mean above which a unit is active."""
NO_INFORMATION = 0.05
"""Nats of information about the data below which a latent site tells nothing of them."""


@dataclass(frozen=True)
class LatentSite:
    """One latent site over the data.

    Attributes:
        kl: E_q[log q(z|x) − log p(z)] of each datum, shape (n,), nats, p conditional where the model's is; NaN where
            the guide's site is a `Delta` (an autoguide's), whose density another site of the guide holds.
        kl_per_dim: its mean over the data for each dimension, (*event), nats; None where q or p does not factorise
            over them, or the site lies in a plate within the data plate.
        mean_variance: variance over the data of the posterior mean E_q[z|x] of each dimension, (*event), without the
            part that is the error of the draws; None for classes, which have no mean, and within such a plate.
        mutual_information: I(x; z) over these data, nats, at most log n; NaN where q depends on other latents, so that
            q(z|x) itself is not known, cannot score values that it has not drawn, or is masked for some data.
        marginal_kl: KL(q(z) ‖ p(z)), nats; NaN where the mutual information is, or p depends on other latents.
        posterior: one draw of each datum's posterior, (n, ...): together, draws of q(z).
        prior: as many from the model's prior.
    """

    kl: Tensor
    kl_per_dim: Tensor | None
    mean_variance: Tensor | None
    mutual_information: float
    marginal_kl: float
    posterior: Tensor
    prior: Tensor

    @property
    def active(self) -> Tensor | None:
        """Which units are active, (*event)."""
        return None if self.mean_variance is None else self.mean_variance > ACTIVE

    @property
    def collapsed(self) -> bool:
        """Whether the site tells nothing of the data: no unit is active, and no information is found otherwise.

        Where neither units nor information can be told, the KL bounds the information.
        """
        information = float(self.kl.mean()) if math.isnan(self.mutual_information) else self.mutual_information
        if self.active is None:
            return information < NO_INFORMATION
        return not bool(self.active.any()) and not self.mutual_information >= NO_INFORMATION

    def describe(self) -> str:
        """The figures in a line."""
        terms = {"KL": float(self.kl.mean()), "I(x; z)": self.mutual_information, "KL(q(z) ‖ p(z))": self.marginal_kl}
        parts = [f"{name} {_nats(value)} nats" for name, value in terms.items() if not math.isnan(value)]
        if self.active is not None:
            parts.insert(1, f"{int(self.active.sum())} of {self.active.numel()} units active")
        return ", ".join(parts)


@dataclass(frozen=True, repr=False)
class LatentReport(Result):
    """The latent sites of a pair, and all of them together.

    Attributes:
        sites: by name, in the order of the model.
        kl: E_q[log q(z|x) − log p(z)] of all latents together, (n,), nats.
        mutual_information: I(x; z) with z all latents together, nats, at most log n; NaN where the guide cannot score
            values that it has not drawn, or a mask leaves a latent out of some data.
        marginal_kl: KL(q(z) ‖ p(z)) of all latents together, nats; with `mutual_information` it sums to the KL.
    """

    sites: dict[str, LatentSite]
    kl: Tensor
    mutual_information: float
    marginal_kl: float

    @property
    def collapsed(self) -> list[str]:
        """Names of the sites that have collapsed."""
        return [name for name, site in self.sites.items() if site.collapsed]

    def summary(self) -> str:
        """A line per site, one for all together, and plain words on what has collapsed."""
        n = len(self.kl)
        lines = [f"{name}: {site.describe()}" for name, site in self.sites.items()]
        parts = f"= I(x; z) {_nats(self.mutual_information)} + KL(q(z) ‖ p(z)) {_nats(self.marginal_kl)}"
        if math.isnan(self.mutual_information):
            parts = "(its parts are not known: the guide scores no values but its own, or a latent is masked)"
        kl = f"KL {_nats(float(self.kl.mean()))} ± {_nats(standard_error(self.kl))} nats"
        lines.append(f"all latents: {kl} {parts}, over {n} data")
        if self.mutual_information > 0.9 * math.log(n):
            lines.append(f"I(x; z) is at its bound, log n = {_nats(math.log(n))}: over more data it would be larger")
        lines += [f"{name} has collapsed: {self.sites[name].describe()}" for name in self.collapsed]
        return "\n".join(lines if self.collapsed else [*lines, "no site has collapsed"])


@takes_data
def latent_report(pair: nn.Module, *data: Any, num_samples: int = 10, seed: int = 0) -> LatentReport:
    """Tells what the latents of a pair hold on these data, and which have collapsed.

    All terms are means over the same draws from the guide, so that the parts of the KL sum to it. log q(z) is the log
    of the mean of q(z|x_j) over all data that are given, which takes n²·num_samples densities: for tens of thousands
    of data take some of them. The information about which of n data it was is at most log n.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), on any device, n at least 2.
        num_samples: draws per datum, at least 2.
        seed: of the draws; the global random state is left alone.

    Returns:
        The report, its tensors in float64 (draws: as they are) on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, there is a single datum, or a density is NaN.

    References:
        ELBO surgery (Hoffman & Johnson 2016, NIPS workshop on advances in approximate Bayesian inference).
        Importance weighted autoencoders (Burda et al. 2016), arXiv 1509.00519: active units.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> latent_report(PPCA(8, 2), torch.randn(100, 8)).sites["z"].mean_variance.shape
        torch.Size([2])
    """
    check_count("num_samples", num_samples)
    if num_samples < 2:
        raise ValueError("num_samples must be at least 2: the error of the draws is taken from their spread, got 1")
    if (n := check_data(data)) < 2:
        raise ValueError("data must hold at least 2 data: information and variances are over the data, got 1")
    check_memory("num_samples", num_samples, 8.0 * n * num_samples)
    with posterior_sampler(pair, data, seed=seed) as posterior, validation(False):
        posterior.check_density()
        draws = draw_sites(posterior, num_samples)
        _check_numbers(draws)
        try:
            own_q, own_p = independent_sites(posterior, draws)
            log_q_z = log_aggregated(posterior, draws)
        except (KeyError, NotImplementedError):  # a transform without an inverse, in Pyro's words and in torch's
            own_q, own_p, log_q_z = set(), set(), {}
        masked = {name for name, z in draws.items() if bool(z.masked.any())}
        if masked:  # q(z|x_j) of a latent that datum j does not have is no density
            own_q, log_q_z = own_q - masked, {name: q for name, q in log_q_z.items() if name is not None}
        sites = {}
        for name in posterior.latents:
            log_q = log_q_z.get(name) if name in own_q else None
            sites[name] = _site(draws[name], log_q, own_prior=name in own_p)
    log_q, log_p = (torch.stack([getattr(z, term) for z in draws.values()]).sum(0) for term in ("log_q", "log_p"))
    return LatentReport(sites, (log_q - log_p).mean(1).cpu(), *_surgery(log_q, log_p, log_q_z.get(None)))


def _check_numbers(draws: dict[str, SiteDraws]) -> None:
    for name, z in draws.items():
        bad = (z.log_q - z.log_p).isnan().any(1)
        if bool(bad.any()):
            raise ValueError(
                f"log q − log p of the latent {name!r} is NaN for row {int(bad.nonzero()[0])} of data: check that "
                "row and the weights of the pair"
            )


def _site(draws: SiteDraws, log_q_z: Tensor | None, *, own_prior: bool) -> LatentSite:
    information, marginal_kl = _surgery(draws.log_q, draws.log_p, log_q_z)
    variance = None
    if draws.mean is not None and draws.mean_error is not None:
        # what the draws add to the variance of their means is known, and taken off
        variance = (draws.mean.var(0) - draws.mean_error.mean(0)).clamp_min(0.0).cpu()
    kl = (draws.log_q - draws.log_p).mean(1).cpu()
    return LatentSite(
        kl=torch.full_like(kl, math.nan) if draws.is_function else kl,
        kl_per_dim=None if draws.log_ratio_per_dim is None else draws.log_ratio_per_dim.mean(0).cpu(),
        mean_variance=variance,
        mutual_information=information,
        marginal_kl=marginal_kl if own_prior else math.nan,
        posterior=draws.value[:, 0].cpu(),
        prior=draws.prior.cpu(),
    )


def _surgery(log_q: Tensor, log_p: Tensor, log_q_z: Tensor | None) -> tuple[float, float]:
    """The information, and the mismatch of the aggregated posterior, at draws (n, s); NaN where it is not known."""
    if log_q_z is None:
        return math.nan, math.nan
    return float((log_q - log_q_z).mean()), float((log_q_z - log_p).mean())


def _nats(value: float) -> str:
    return f"{value:.3f}"
