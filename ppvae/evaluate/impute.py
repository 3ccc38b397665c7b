"""What was not observed, drawn given what was: multiple imputation by the importance weights of log p(x).

Mattei & Frellsen 2019, "MIWAE: deep generative modelling and imputation of incomplete data sets", arXiv 1812.02633:
latents from the guide are drawn again in proportion to p(x observed, z) / q(z|x), and missing elements from p(x|z).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.evaluate.codes import chosen
from ppvae.evaluate.psis import pareto_k
from ppvae.inputs import takes_data
from ppvae.sampling.adaptive import first_proposal
from ppvae.sampling.latent import Latent
from ppvae.sampling.log_density import LogDensity
from ppvae.sampling.posterior_draws import Latents, PosteriorSampler, posterior_sampler
from ppvae.traces import sites

NUM_PARTICLES = 1000
"""Draws of the guide for each datum, among which the imputations are drawn."""


@dataclass(frozen=True)
class Imputation:
    """Completed data.

    Attributes:
        draws: as many completions of each datum, (s, n, *event): what was observed, and draws of what was not.
        observed: which elements were observed, (n, *event).
        pareto_k: k̂ of the weights of each datum, (n,): beyond 0.7 its draws are not those of the posterior.
        latents: by site the draws z ~ p(z|x observed) that the completions were drawn with, (s, n, ...).
    """

    draws: Tensor
    observed: Tensor
    pareto_k: Tensor
    latents: dict[str, Tensor]

    def mean(self) -> Tensor:
        """The mean of each element over the draws, (n, *event): the best guess of a number in squared error."""
        return self._numbers().mean(0)

    def coverage(self, truth: Tensor, level: float = 0.9) -> float:
        """Which share of the missing elements lies in the central interval of its draws: `level`, where all is right.

        Args:
            truth: the complete data, (n, *event); NaN where it is not known.
            level: of the interval.
        """
        tail = (1 - level) / 2
        low, high = (self._numbers().quantile(q, 0) for q in (tail, 1 - tail))
        counted = ~self.observed & truth.isfinite()
        return float(((truth >= low) & (truth <= high))[counted].double().mean())

    def _numbers(self) -> Tensor:
        """The draws as numbers that have means: a categorical site draws whole ones."""
        return self.draws if self.draws.is_floating_point() else self.draws.double()


@takes_data
def impute(
    pair: nn.Module,
    *data: Any,
    num_samples: int = 100,
    num_particles: int = NUM_PARTICLES,
    site: str | None = None,
    method: Literal["importance", "adaptive"] = "importance",
    seed: int = 0,
) -> Imputation:
    """Draws what a mask leaves out of the observed site, given the rest.

    Args:
        pair: any model/guide pair whose observed site has a mask over its elements, such as a `MaskedVAE`.
        data: its arguments, tensors or arrays of shape (n, ...), on any device; or one iterable of minibatches of them.
        num_samples: s, completions of each datum.
        num_particles: draws from the guide for each datum, among which s are drawn by their weights.
        site: the observed site, where the model has several.
        method: whether the particles are the guide's draws, or come from proposals fitted to each datum, as those of
            `Adaptive`: where k̂ of the former is above 0.7. Latents must be continuous then.
        seed: of the draws; the global random state is left alone.

    Returns:
        The draws, on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or it is not clear which site is meant.

    Example:
        >>> import torch
        >>> from ppvae.data import Column
        >>> from ppvae.distributions import ConditionalNormal, StandardNormal
        >>> from ppvae.models import MaskedVAE
        >>> from ppvae.nn import MLP, ConcatInputs
        >>> encoder = ConcatInputs((4, 4), MLP(8, (8,), (2, 2)))
        >>> pair = MaskedVAE(StandardNormal(2), ConditionalNormal(MLP(2, (8,), (2, 4))), ConditionalNormal(encoder))
        >>> x, observed = torch.randn(10, 4), torch.rand(10, 4) < 0.8
        >>> imputed = impute(pair, x, observed, num_samples=5)
        >>> bool((imputed.draws[:, observed] == x[observed]).all())
        True
    """
    check_count("num_samples", num_samples)
    check_count("num_particles", num_particles)
    if method not in ("importance", "adaptive"):
        raise ValueError(f"method must be 'importance' or 'adaptive', got {method!r}")
    blocks = []
    with posterior_sampler(pair, data, seed=seed) as posterior:
        name = chosen("site", site, posterior.observed)
        density = LogDensity(posterior, compile=False) if method == "adaptive" else None
        if density is None:
            posterior.check_density()
        for place, part in posterior.parts(max(num_samples, num_particles)):
            blocks.append(_completed(part, density, name, num_samples, num_particles, place.start))
    draws, observed, k, latents = zip(*blocks, strict=True)
    by_site = {z: torch.cat([block[z] for block in latents], 1) for z in latents[0]}
    return Imputation(torch.cat(draws, 1), torch.cat(observed), torch.cat(k), by_site)


def _completed(
    part: PosteriorSampler, density: LogDensity | None, name: str, s: int, k: int, first: int
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Completions of some data, (s, n, *event), what was observed, k̂ and latents; `first` is their first's number."""
    taken, log_weight = _drawn(part, s, k, first) if density is None else _fitted(density, part, s, k, first)
    observed_site = sites(part.model_trace(taken))[name]
    drawn = part.predict(taken)[name]
    given, counted = (
        part.sampler.value(replace(observed_site, value=of), s)
        for of in (observed_site.value.expand(observed_site.fn.shape()), observed_site.counted())
    )
    draws, value, seen = (of.value.movedim(of.data_dim, 1) for of in (drawn, given, counted))
    of_latents = {z: latent.value.movedim(latent.data_dim, 1).cpu() for z, latent in taken.items()}
    return torch.where(seen, value, draws).cpu(), seen[0].cpu(), pareto_k(log_weight).cpu(), of_latents


def _drawn(part: PosteriorSampler, s: int, k: int, first: int) -> tuple[Latents, Tensor]:
    """`s` of `k` draws from the guide by their weights, and these, (k, n)."""
    latents, log_q = part.draw(k)
    log_likelihood, log_prior = part.log_joint(latents)
    log_weight = (log_likelihood + sum(log_prior.values()) - sum(log_q.values())).double()
    index = _chosen(log_weight, s, first)
    return {z: _rows_of(latent, index) for z, latent in latents.items() if z in part.latents}, log_weight


def _fitted(density: LogDensity, part: PosteriorSampler, s: int, k: int, first: int) -> tuple[Latents, Tensor]:
    """The same of draws from a proposal that is fitted to each datum."""
    u, log_weight = first_proposal(density, part).draw(k)
    index = _chosen(log_weight, s, first)
    return density.latents_at(part, u.gather(0, index.unsqueeze(-1).expand(-1, -1, u.shape[-1]))), log_weight


def _chosen(log_weight: Tensor, s: int, first: int) -> Tensor:
    """The numbers of `s` draws of each datum, taken by their weights, (s, n)."""
    if bool((bad := ~(log_weight.logsumexp(0) > -math.inf)).any()):
        raise ValueError(f"all importance weights of datum {first + int(bad.nonzero()[0])} are zero, or NaN")
    return torch.multinomial(log_weight.softmax(0).T, s, replacement=True).T


def _rows_of(latent: Latent, index: Tensor) -> Latent:
    """Of each datum the draws with these numbers, (s, n)."""
    value = latent.value.movedim(latent.data_dim, 1)
    where = index.reshape(*index.shape, *[1] * (value.dim() - 2)).expand(*index.shape, *value.shape[2:])
    return replace(latent, value=value.gather(0, where).movedim(1, latent.data_dim))
