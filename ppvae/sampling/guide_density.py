"""Whether the draws of a guide have a density that weights can be made of: point masses, codes, auxiliary variables.

    w = p(x, z) / q(z|x)

asks for q(z|x) itself. A `Delta` at a continuous latent has none; at a discrete one it has all of its mass at one
value, and log w is a bound. A variable u that the guide draws and the model lacks leaves an integral,
q(z|x) = ∫ q(u|x) q(z|u, x) du, which is known in three cases alone: a Delta makes the latents of u, one to one, and
holds the change of volume; u is summed over; or a reverse model r(u|z, x) stands in for the posterior of u, so that
p(x, z) r(u|z, x) / q(u, z|x) still has the expectation p(x) (Maaløe et al. 2016, "Auxiliary deep generative models",
arXiv 1602.05473).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import biject_to

from ppvae.sampling.enumeration import Enumeration
from ppvae.sampling.volume import wrong_volumes
from ppvae.traces import Site, latent_of, leaf


class PointMassError(ValueError):
    """The guide gives a continuous latent one value: there are no importance weights, and no ELBO."""


@dataclass(frozen=True)
class GuideDensity:
    """What the weights of a pair's draws take besides the densities of the guide's sites.

    Attributes:
        summed: the auxiliary variables that q is summed over.
        reversed: the auxiliary variables whose density given the latents the pair's `reverse` holds.
        codes: discrete latents that the guide gives one value.
        refusal: why there are no weights; empty where there are.
        points: continuous latents that the guide gives one value, which is a refusal.
        latents: of the model: what `reverse` is given.
    """

    summed: Enumeration = field(default_factory=Enumeration)
    reversed: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    refusal: str = ""
    points: tuple[str, ...] = ()
    latents: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        pair: nn.Module,
        model: Mapping[str, Site],
        guide: Mapping[str, Site],
        draw: Callable[[], dict[str, Tensor]],
        run: Callable[[], Trace],
    ) -> GuideDensity:
        """Looks at the sites of a pair.

        Args:
            pair: it may have a `reverse`.
            model: its sites, run on a few data.
            guide: the same, one draw of each datum.
            draw: gives several draws of each datum from the guide, (s, ...) by site.
            run: gives a run of the guide on one datum.
        """
        latents = {name: site for name, site in model.items() if site.is_drawn}
        drawn = {name: site for name, site in guide.items() if site.is_drawn}
        alone = {name: site for name, site in drawn.items() if name not in latents and not _is_delta(site)}
        fixed = {
            name: site
            for name, site in drawn.items()
            if name in latents and _is_delta(site) and not _is_delta(latents[name])
        }
        if not alone and not fixed:
            return cls()
        codes = tuple(name for name in fixed if latents[name].is_discrete)
        maps = {name: site for name, site in fixed.items() if name not in codes}
        summed = Enumeration.of_auxiliary({name: site for name, site in alone.items() if site.is_marked})
        free = {name: site for name, site in alone.items() if not site.is_marked}
        points, makers = _unmapped(maps, free, latents, draw) if maps else ([], {})
        if points:
            return cls(refusal=_point_masses(points), points=tuple(points))
        if makers and (said := wrong_volumes(run, makers, maps, latents)):
            return cls(refusal=said)
        free = {name: site for name, site in free.items() if name not in makers}
        if free and not callable(getattr(pair, "reverse", None)):
            return cls(refusal=_no_reverse(free))
        return cls(summed, tuple(free), codes, latents=tuple(latents))

    def check(self) -> None:
        """Checks that there are weights.

        Raises:
            PointMassError: naming the latents that the guide gives one value, and what to do.
            ValueError: naming other sites for which there are none.
        """
        if self.refusal:
            raise (PointMassError if self.points else ValueError)(self.refusal)


def _is_delta(site: Site) -> bool:
    return isinstance(leaf(site.fn), Delta)


def _unmapped(
    maps: dict[str, Site], free: dict[str, Site], latents: Mapping[str, Site], draw: Callable[[], dict[str, Tensor]]
) -> tuple[list[str], dict[str, Site]]:
    """The continuous latents that are point masses, and the auxiliary variables that make the others.

    Auxiliary variables make latents where these are not the same for all draws, and the ones have as many elements as
    the others have coordinates, so that a map between them can be one to one. Without any a Delta may still hold a
    density of its own, that of noise drawn outside of `pyro.sample`.
    """
    values = draw()
    points = [name for name in maps if bool((values[name] == values[name][:1]).all())]
    moving = {name: site for name, site in maps.items() if name not in points}
    continuous = {name: site for name, site in free.items() if not site.is_discrete}
    named = {name: site for name, site in continuous.items() if latent_of(name, moving) != name}  # z_unconstrained
    for makers in (named, continuous):
        if sum(map(_size, makers.values())) == sum(_size(latents[z]) for z in moving):
            return points, makers
    if not continuous:
        points += [z for z, site in moving.items() if not bool((leaf(site.fn).log_density != 0).any())]
    elif sum(map(_size, continuous.values())) < sum(_size(latents[z]) for z in moving):
        points += moving
    return points, {}


def _size(site: Site) -> int:
    """How many coordinates without bounds its values have, in all data together."""
    try:
        return torch.Size(biject_to(leaf(site.fn).support).inverse_shape(site.value.shape)).numel()
    except (NotImplementedError, AttributeError):
        return site.value.numel()


def _point_masses(names: list[str]) -> str:
    return (
        f"the guide gives the continuous latents {names} one value (a Delta: MAP, AutoDelta), and no density: "
        "p(x, z) / q(z|x) is no importance weight, and log p(x, z) at one point is neither log p(x) nor a bound of it. "
        "Use a guide that draws them (AutoNormal, a net for location and scale), or "
        'log_marginal(..., method=Annealed(start="prior")), which needs no guide'
    )


def _no_reverse(sites: Mapping[str, Site]) -> str:
    names = list(sites)
    discrete = [name for name, site in sites.items() if site.is_discrete]
    summed = f'mark {discrete} with infer={{"enumerate": "parallel"}} to sum q over them, or ' if discrete else ""
    return (
        f"the guide draws {names}, which the model does not have, so that q(z|x) is an integral over them, and their "
        f"log q cannot be subtracted from log p(x, z): {summed}give the pair a reverse model r(u|z, x), a method "
        "reverse(*batch, **latents) that samples them given the latents (Maaløe et al. 2016). Without either, they are "
        "right only where a Delta makes latents of as many elements of them"
    )
