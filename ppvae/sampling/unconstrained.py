"""All continuous latents of a datum as one vector without bounds, and the densities of a pair there.

    log p(x, u) = log p(x, z) + log |∂z/∂u|,   z = T(u),

with T the bijection from the reals onto the support of each latent: what moves u, or proposes it, needs to know nothing
about sites and plates. Discrete latents y that are marked for enumeration are summed over: p(x, u) = Σ_y p(x, y, u).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Transform

from ppvae._internals import mask_of_distribution
from ppvae.pair import take
from ppvae.sampling.latent import Latent
from ppvae.sampling.posterior_draws import Latents, PosteriorSampler, num_samples
from ppvae.sampling.sampler import PROBE_DATA, PROBE_SAMPLES, Sampler, Values
from ppvae.sampling.support import to_support
from ppvae.traces import Site, carries_more, sites

Source = Literal["guide", "prior"]
"""What draws latents: the guide, or the prior."""


@dataclass(frozen=True)
class _Coordinates:
    """Where one site lies in u: its shape there is (s, *plates, n, *event)."""

    plates: torch.Size
    event: torch.Size
    plate_dims: int
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod((*self.plates, *self.event))


class Unconstrained:
    """The vectors u of a pair on its data, for use inside the context of `posterior`.

    Args:
        posterior: the pair on its data; what it sums over is no part of u.
        proper: whether all densities integrate over u: the elements that a mask leaves out are standard normal in every
            density and draw, and angles lie within one turn; else the former count for nothing, as in the pair, and
            the latter turn on.

    Attributes:
        posterior: the same.
        latents: names of the sites that u is made of, in the model's order.

    Raises:
        ValueError: naming the site of a discrete latent, or one without a support; where there is no latent.
    """

    def __init__(self, posterior: PosteriorSampler, *, proper: bool = False) -> None:
        self.posterior = posterior
        self._proper = proper
        summed = {*posterior.summed.guide, *posterior.summed.model}
        self.latents = tuple(name for name in posterior.latents if name not in summed)
        if not self.latents:
            raise ValueError(
                "the model has no latents but those that are summed over: log_marginal by importance sampling is exact"
                if summed
                else "the model has no latents: there is nothing to move along gradients"
            )
        self._coordinates: dict[str, _Coordinates] = {}
        self._summing = replace(posterior.sampler, enumeration=posterior.summed)

    def probe(self) -> PosteriorSampler:
        """The pair on a few of the data."""
        return replace(self.posterior, data=take(self.posterior.data, slice(0, PROBE_DATA)))

    def draw(self, part: PosteriorSampler, s: int, source: Source) -> tuple[Tensor, Tensor | None]:
        """`s` draws of the guide or the prior for every datum, as u, (s, n, k), and which of them p(x, z) excludes.

        Those, (s, n), lie outside the support of a prior and have another u than their own, which has none; None where
        no prior has bounds.
        """
        latents = self._draw(part, s, source)
        trace = part.model_trace(latents)
        return self._position(part, sites(trace), s), part.sampler.outside(trace, s, self.latents)

    def position(self, part: PosteriorSampler, latents: Latents) -> Tensor:
        """The u of these latents, (s, n, k)."""
        return self._position(part, sites(part.model_trace(latents)), num_samples(latents))

    def latents_at(self, part: PosteriorSampler, position: Tensor) -> Latents:
        """The latents at u, (s, n, k), without those that are summed over."""
        s = len(position)
        with _Constrain(self._values(position), part.sampler.plate_dim, turn=self._proper):
            at = sites(part.sampler.model(part.data, s, {}, {}))
        return {name: part.sampler.value(at[name], s) for name in self.latents}

    def log_joint(self, part: PosteriorSampler, position: Tensor) -> Tensor:
        """Log p(x, u), (s, n)."""
        return self.log_densities(part, position, None)[0]

    def log_densities(self, part: PosteriorSampler, position: Tensor, source: Source | None) -> tuple[Tensor, Tensor]:
        """Log p(x, u), and log q(u|x) of the guide or log p(u) of the prior, each (s, n); of no source zeros.

        Args:
            part: some of the data.
            position: u, (s, n, k).
            source: whose density comes second.
        """
        summed, found = part.summed, []
        for i, fixed in enumerate(summed.values):
            joint, of_source = self._at(part, position, fixed, source)
            if source == "guide" and i % summed.num_model:  # the guide knows nothing of the model's own sites
                of_source = torch.full_like(of_source, -math.inf)
            found.append((joint, of_source))
        if len(found) == 1:
            return found[0]
        joints, sources = zip(*found, strict=True)
        return torch.stack(joints).logsumexp(0), torch.stack(sources).logsumexp(0)

    def check_scores(self) -> None:
        """Checks that the guide knows the density of latents that it has not drawn just then.

        Raises:
            ValueError: where it does not, or has none.
        """
        probe = self.probe()
        probe.check_density()
        latents, drawn = probe.draw(PROBE_SAMPLES)
        # Those of another sample are as good as its own, but no cache knows them.
        others = {name: replace(latents[name], value=latents[name].value.roll(1, 0)) for name in latents}
        others = {name: latent for name, latent in others.items() if name in probe.latents}
        why = "its answer is another one"
        try:
            again = _sum(probe.log_posterior(others).values())
            expected = _sum(drawn.values()).roll(1, 0)
            if torch.allclose(again, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                return
        except Exception as error:  # whatever a flow without an inverse raises
            why = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            "the guide cannot score latents other than those that it has just drawn, as annealing from it needs "
            f'({why}): use start="prior"'
        )

    def _draw(self, part: PosteriorSampler, s: int, source: Source) -> Latents:
        """Draws of every latent, those that are summed over too."""
        if source == "guide":
            return {name: z for name, z in part.draw(s)[0].items() if name in part.latents}
        drawn = sites(part.sampler.model(part.data, s, {}, {}))
        part.check_sites(drawn)
        return {name: part.sampler.value(drawn[name], s) for name in part.latents}

    def _position(self, part: PosteriorSampler, at: Mapping[str, Site], s: int) -> Tensor:
        found = []
        for name in self.latents:
            check_movable(name, at[name].value)
            transform = from_reals(name, at[name].fn, turn=self._proper)
            in_reals = replace(at[name], value=transform.inv(at[name].value), fn=transform.domain)
            u = part.sampler.value(in_reals, s)
            shape, dim = u.value.shape, u.data_dim
            self._coordinates[name] = _Coordinates(shape[1:dim], shape[dim + 1 :], u.plate_dims, u.value.dtype)
            found.append(u.value.movedim(dim, 1).reshape(s, len(part), -1))
        position, masked = torch.cat(found, -1), self._masked(part, at, s)
        return position if masked is None else torch.where(masked, torch.randn_like(position), position)

    def _masked(self, part: PosteriorSampler, at: Mapping[str, Site], s: int) -> Tensor | None:
        """Which elements of u a mask leaves out and are to have a density, (s, n, k); None where there are none."""
        if not self._proper or not any(at[name].is_masked for name in self.latents):
            return None
        found = []
        for name, place in self._coordinates.items():
            counted = torch.broadcast_tensors(at[name].counted(), at[name].value)[0]
            left_out = part.sampler.value(replace(at[name], value=~counted), s)
            flags = left_out.value.movedim(left_out.data_dim, 1).reshape(s, len(part), math.prod(place.plates), -1)
            found.append(flags.any(-1, keepdim=True).expand(-1, -1, -1, math.prod(place.event)).flatten(2))
        return torch.cat(found, -1)

    def _at(
        self, part: PosteriorSampler, position: Tensor, fixed: Values, source: Source | None
    ) -> tuple[Tensor, Tensor]:
        """Both densities at one joint value of what is summed over."""
        sampler, s = self._summing, len(position)
        with _Constrain(self._values(position), sampler.plate_dim, turn=self._proper) as constrain:
            trace = sampler.model(part.data, s, {}, fixed)
        at = sites(trace)
        part.check_sites(at)
        log_likelihood, log_prior_of = sampler.joint(trace, s)
        volume = _sum(sampler.log_prob(replace(at[z], log_prob=v), s) for z, v in constrain.log_volume.items())
        if (masked := self._masked(part, at, s)) is not None:
            volume = volume + torch.where(masked, -(position**2 + math.log(2 * math.pi)) / 2, 0.0).sum(-1)
        log_source = log_prior = _sum(log_prior_of.values())
        if source == "guide":
            latents = {name: sampler.value(at[name], s) for name in self.latents}
            log_source = _log_guide(sampler, part, latents, fixed)
        return log_likelihood + log_prior + volume, log_source + volume if source else torch.zeros_like(volume)

    def _values(self, position: Tensor) -> Latents:
        """The values of u that belong to each site."""
        s, n, _ = position.shape
        parts = position.split([place.numel for place in self._coordinates.values()], -1)
        found = {}
        for part, (name, place) in zip(parts, self._coordinates.items(), strict=True):
            value = part.to(place.dtype).reshape(s, n, *place.plates, *place.event)
            found[name] = Latent(value.movedim(1, 1 + len(place.plates)), len(place.event), place.plate_dims)
        return found


def _log_guide(sampler: Sampler, part: PosteriorSampler, latents: Latents, fixed: Values) -> Tensor:
    """Log q(y, z|x) of the guide at these latents and one joint value of what is summed over, (s, n)."""
    s = num_samples(latents)
    _, log_q = sampler.posterior(sampler.guide(part.data, s, latents, fixed), s)
    return _sum(sampler.log_q(part.data, s, latents, log_q, fixed).values())


class _Constrain(Messenger):
    """Gives latent sites z = T(u), each with the support that it has there, and notes log |∂z/∂u|."""

    def __init__(self, values: Latents, plate_dim: int | None, *, turn: bool) -> None:
        super().__init__()
        self._turn = turn
        self._values = {n: u.folded() if plate_dim is None else u.plated(plate_dim) for n, u in values.items()}
        self.log_volume: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self._values:
            name, fn, u = msg["name"], msg["fn"], self._values[msg["name"]]
            transform = from_reals(name, fn, turn=self._turn)
            msg["value"], msg["done"] = transform(u), True
            log_volume = transform.log_abs_det_jacobian(u, msg["value"])
            # Where a latent is masked its density counts for one, and so does the volume.
            self.log_volume[name] = scale_and_mask(log_volume, mask=mask_of_distribution(fn))


def check_movable(name: str, value: Tensor) -> None:
    """Checks that what chains move is all that the model sees of a latent, and its density too.

    Raises:
        ValueError: naming the site, where its value carries more than its numbers.
    """
    if carries_more(value):
        raise ValueError(
            f"the values of the latent {name!r} carry more than their numbers, as straight-through relaxations do: "
            "their density is that of one tensor and the model sees another, which chains cannot move"
        )


def from_reals(name: str, fn: Any, *, turn: bool = False) -> Transform:
    """The bijection from the reals onto the support of a latent site, see `to_support`.

    Raises:
        ValueError: naming the site, where its support is discrete or there is no such bijection.
    """
    try:
        if fn.support.is_discrete:
            raise ValueError(
                f"the latent {name!r} is discrete ({type(fn).__name__}): annealing moves along gradients, which only "
                "continuous latents have; latents that are marked for enumeration are summed over"
            )
        return to_support(fn, turn=turn)
    except (NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"the support of the latent {name!r} ({type(fn).__name__}) is not known to torch.distributions.biject_to"
        ) from error


def _sum(log_probs: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(log_probs)).sum(0)


def spread(draws: Tensor) -> Tensor:
    """The scale of draws (s, n, k) in each coordinate, (n, k): that of a normal with their quartiles."""
    ordered = draws.sort(0).values
    quarter = len(draws) // 4
    return ((ordered[-quarter - 1] - ordered[quarter]) / 1.349).clamp_min(torch.finfo(draws.dtype).tiny)
