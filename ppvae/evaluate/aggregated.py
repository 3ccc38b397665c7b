"""Draws of every latent over a set of data, their densities and means, and the aggregated posterior.

    q(z) = (1/n) Σ_j q(z|x_j)

Every tensor here has the data in front: (n, ...).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor

from ppvae.evaluate.sites import mask_of
from ppvae.pair import blocks, take
from ppvae.sampling.latent import Latent
from ppvae.sampling.posterior_draws import PosteriorSampler
from ppvae.traces import Site, leaf, sites

PROBES = 64
"""Data on which it is tried whether a site depends on other latents."""


@dataclass(frozen=True)
class SiteDraws:
    """Draws of a latent site.

    Attributes:
        value: shape (n, s, *plates, *event).
        event_dim: how many dims the event has.
        plate_dims: how many plates within the data plate it needs, see `Latent`.
        log_q: log q of each draw, (n, s), nats.
        log_p: log p of each draw, (n, s), nats; zero for a site that only the guide has.
        log_ratio_per_dim: mean over the draws of log q − log p of each dimension, (n, *event), nats; None where q or p
            does not factorise over the dimensions, or the site lies in a plate within the data plate.
        mean: mean over the draws of the site's mean (of the draw itself where that is not known), (n, *event); None
            where there is none, and in such a plate.
        mean_error: its variance as an estimate, (n, *event).
        prior: one draw from the model, (n, *plates, *event); of the value for a site that only the guide has.
        is_function: whether the guide's site is a `Delta`: a function of another site, which holds its density.
        masked: whether a mask leaves the site out of some data's guide, (n,), the same for all of a block.
    """

    value: Tensor
    event_dim: int
    plate_dims: int
    log_q: Tensor
    log_p: Tensor
    log_ratio_per_dim: Tensor | None
    mean: Tensor | None
    mean_error: Tensor | None
    prior: Tensor
    is_function: bool
    masked: Tensor

    def latent(self, index: slice) -> Latent:
        """The draws of some of the data, as a pair is given them."""
        value = self.value[index]
        return Latent(value.movedim(0, value.dim() - 1 - self.event_dim), self.event_dim, self.plate_dims)


def draw_sites(posterior: PosteriorSampler, s: int) -> dict[str, SiteDraws]:
    """`s` draws of every site of the guide for every datum, those of the model in its order, then the others."""
    parts = [_draw(part, s) for _, part in posterior.parts(s)]
    found = {}
    for name in parts[0]:
        of_part = [vars(part[name]) for part in parts]
        joined: dict[str, Any] = {
            key: torch.cat([values[key] for values in of_part]) if isinstance(first, Tensor) else first
            for key, first in of_part[0].items()
        }
        found[name] = SiteDraws(**joined)
    return found


def independent_sites(posterior: PosteriorSampler, draws: dict[str, SiteDraws]) -> tuple[set[str], set[str]]:
    """The sites whose q, and those whose p, is the same whatever the other latents are.

    Tried out: each site is scored with its own draws, and with those of the others taken from other data.
    """
    index = slice(None, None, -(-len(posterior) // PROBES))
    posterior = replace(posterior, data=take(posterior.data, index))
    latents = {name: site.latent(index) for name, site in draws.items()}
    others = {name: replace(z, value=z.value.roll((1, 1), (0, z.data_dim))) for name, z in latents.items()}
    alone: tuple[set[str], set[str]] = set(), set()
    scores = posterior.log_posterior, lambda latents: posterior.log_joint(latents)[1]
    for score, found in zip(scores, alone, strict=True):
        expected = score(latents)
        for name, z in latents.items():
            same = name in expected and torch.allclose(
                score({**others, name: z})[name], expected[name], rtol=1e-4, atol=1e-4, equal_nan=True
            )
            found |= {name} if same else set()
    return alone


def log_aggregated(posterior: PosteriorSampler, draws: dict[str, SiteDraws]) -> dict[str | None, Tensor]:
    """Log q(z) = log (1/n) Σ_j q(z|x_j) at the draws of all data, (n, s): of each site, and of all together as None.

    Of a site that depends on others it is (1/n) Σ_j q(z|x_j, others), which is no aggregated posterior.
    """
    n, s = next(iter(draws.values())).log_q.shape
    values = {name: site.value.flatten(0, 1) for name, site in draws.items()}
    size = max(1, math.isqrt(posterior.sampler.rows))
    total: dict[str | None, Tensor] = {}
    for _, part in posterior.parts(size):
        for start, stop in blocks(n * s, size):
            latents = {}
            for name, site in draws.items():
                value = values[name][start:stop]
                dim = value.dim() - site.event_dim
                expanded = value.unsqueeze(dim).expand(*value.shape[:dim], len(part), *value.shape[dim:])
                latents[name] = Latent(expanded, site.event_dim, site.plate_dims)
            log_q: dict[str | None, Tensor] = {name: q.double() for name, q in part.log_posterior(latents).items()}
            log_q[None] = torch.stack(list(log_q.values())).sum(0)
            for key, q in log_q.items():
                so_far = total.setdefault(key, torch.full((n * s,), -math.inf, dtype=q.dtype, device=q.device))
                so_far[start:stop] = torch.logaddexp(so_far[start:stop], q.logsumexp(1))
    return {key: value.view(n, s) - math.log(n) for key, value in total.items()}


def _draw(posterior: PosteriorSampler, s: int) -> dict[str, SiteDraws]:
    sampler, data = posterior.sampler, posterior.data
    guide_trace = sampler.guide(data, s, {}, {})
    latents, log_q = sampler.posterior(guide_trace, s)
    model_trace = posterior.model_trace(latents)
    _, log_p = sampler.joint(model_trace, s)
    guide, model, prior = sites(guide_trace), sites(model_trace), sites(sampler.model(data, 1, {}, {}))
    found = {}
    for name in dict.fromkeys([*posterior.latents, *latents]):
        z, in_model = latents[name], name in log_p
        nested = math.prod(z.value.shape[1 : z.data_dim]) > 1
        mean = None if nested else _mean(posterior, guide[name], s)
        q = p = None
        masked = not bool(mask_of(guide[name], {}).all())
        is_function = isinstance(leaf(guide[name].fn), Delta)
        if in_model and not nested and not is_function:
            q, p = (_per_dim(posterior, of[name], s) for of in (guide, model))
        found[name] = SiteDraws(
            value=_data_first(z),
            event_dim=z.event_dim,
            plate_dims=z.plate_dims,
            log_q=log_q[name].T.double(),
            log_p=(log_p[name] if in_model else torch.zeros_like(log_q[name])).T.double(),
            log_ratio_per_dim=None if q is None or p is None else (q - p).mean(1),
            mean=None if mean is None else mean.mean(1),
            mean_error=None if mean is None else mean.var(1) / s,
            prior=_data_first(sampler.value(prior[name], 1) if in_model else z)[:, 0],
            is_function=is_function,
            masked=torch.full((len(posterior),), masked),
        )
    return found


def _per_dim(posterior: PosteriorSampler, site: Site, s: int) -> Tensor | None:
    """Log-density of each dimension of a site's draws, (n, s, *event); what is masked counts for zero."""
    of_each = leaf(site.fn)
    if of_each.event_dim > 0:
        return None
    log_prob = torch.where(site.counted(), of_each.log_prob(site.value), 0.0).expand_as(site.value)
    return _alone(posterior, site, log_prob, s)


def _mean(posterior: PosteriorSampler, site: Site, s: int) -> Tensor | None:
    """The mean of a site given the draws before it, (n, s, *event); where it is not known, the site's draws."""
    try:
        mean = site.fn.mean.expand_as(site.value)
        known = bool(mean.isfinite().all())
    except NotImplementedError:
        known = False
    if not known and site.fn.support.is_discrete:
        return None
    return _alone(posterior, site, mean if known else site.value, s)


def _alone(posterior: PosteriorSampler, site: Site, values: Tensor, s: int) -> Tensor:
    """Values of the shape of a site's, that lies in no plate but the data's: (n, s, *event)."""
    z = posterior.sampler.value(replace(site, value=values), s)
    return _data_first(z).reshape(len(posterior), s, *site.fn.event_shape).double()


def _data_first(z: Latent) -> Tensor:
    return z.value.movedim(z.data_dim, 0)
