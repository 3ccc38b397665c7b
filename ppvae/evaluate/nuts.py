"""The guide against a gold standard: Markov chains on the same posterior, for a few chosen data.

    q(z|x)   against   p(z|x) ∝ p(x|z) p(z),   sampled by NUTS (Hoffman & Gelman 2014, "The No-U-Turn sampler",
                                               arXiv 1111.4246)

The parameters of the pair are held fixed. Given them the data are independent, so that one chain over the latents of
all of them has each datum's posterior as a marginal; diagnostics are per datum and latent dimension.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Transform

from ppvae._validate import check_count
from ppvae.evaluate.arviz import import_arviz
from ppvae.evaluate.sites import Plates, by_datum, elements, in_blocks, inner_plates, mask_of, once
from ppvae.inputs import takes_data
from ppvae.processes import each_seeded
from ppvae.result import Result
from ppvae.sampling.posterior_draws import Latents, PosteriorSampler, posterior_sampler
from ppvae.sampling.support import bounds_of, support_of
from ppvae.sampling.unconstrained import check_movable, from_reals

MAX_R_HAT, MIN_ESS = 1.05, 100
"""Beyond these the chains are no standard to judge a guide by."""


@dataclass(frozen=True, repr=False)
class NUTSComparison(Result):
    """Draws from the guide and from NUTS, on the CPU, and their moments, (n, *plates, *event), by latent site.

    Attributes:
        guide: draws from q(z|x), each (s, n, *plates, *event).
        nuts: as many from p(z|x), the chains one after the other.
        r_hat: split R̂ of the chains, rank-normalised (Vehtari et al. 2021, arXiv 1903.08008).
        ess: the chains' effective sample size, bulk.
        num_chains: how many chains.
        num_divergences: transitions that diverged, in all.
    """

    guide: dict[str, Tensor]
    nuts: dict[str, Tensor]
    r_hat: dict[str, Tensor]
    ess: dict[str, Tensor]
    num_chains: int
    num_divergences: int

    def shift(self) -> dict[str, Tensor]:
        """(mean of the guide − mean of NUTS) / standard deviation of NUTS."""
        return {z: (self.guide[z].mean(0) - nuts.mean(0)) / nuts.std(0) for z, nuts in self.nuts.items()}

    def std_ratio(self) -> dict[str, Tensor]:
        """Standard deviation of the guide / standard deviation of NUTS."""
        return {z: self.guide[z].std(0) / nuts.std(0) for z, nuts in self.nuts.items()}

    def wasserstein(self) -> dict[str, Tensor]:
        """The 1-Wasserstein distance of the marginals, in standard deviations of NUTS.

        It sees a wrong shape too, but of finite draws it is above zero even where the two agree.
        """
        return {
            z: (self.guide[z].sort(0).values - nuts.sort(0).values).abs().mean(0) / nuts.std(0)
            for z, nuts in self.nuts.items()
        }

    def shift_error(self) -> dict[str, Tensor]:
        """The standard error of `shift` from the draws."""
        s = len(next(iter(self.guide.values())))
        return {z: (ratio**2 / s + 1 / self.ess[z]).sqrt() for z, ratio in self.std_ratio().items()}

    def converged(self) -> bool:
        """Whether the chains can be believed: R̂ and effective sample sizes within bounds, and no divergence."""
        r_hat, ess = (torch.cat([v.flatten() for v in of.values()]) for of in (self.r_hat, self.ess))
        return bool((r_hat <= MAX_R_HAT).all() and (ess >= MIN_ESS).all()) and self.num_divergences == 0

    def summary(self) -> str:
        """A paragraph for a person: how far the guide is off at worst, where, and whether NUTS can be believed."""
        n = len(next(iter(self.r_hat.values())))
        shift, place = _extreme({z: v.abs() for z, v in self.shift().items()})
        error = float(torch.cat([v.flatten() for v in self.shift_error().values()]).max())
        wide, wide_at = _extreme(self.std_ratio())
        narrow, narrow_at = _extreme({z: -v for z, v in self.std_ratio().items()})
        r_hat, ess = _extreme(self.r_hat)[0], -_extreme({z: -v for z, v in self.ess.items()})[0]
        chains = f"R̂ {r_hat:.3f} at most, effective sample size {ess:.0f} at least, {self.num_divergences} divergences"
        doubt = "" if self.converged() else "; NUTS has not converged: do not judge the guide by it"
        return (
            f"guide against NUTS on {n} data, in standard deviations of NUTS: mean off by up to {shift:.2f} ({place}; "
            f"error of the draws {error:.2f}), standard deviation from {-narrow:.2f} ({narrow_at}) to {wide:.2f} "
            f"({wide_at}) times that of NUTS; {chains}{doubt}"
        )


@takes_data
def compare_with_nuts(
    pair: nn.Module, *data: Any, num_samples: int = 1000, warmup: int = 500, num_chains: int = 1, seed: int = 0
) -> NUTSComparison:
    """Samples the posterior of every datum by NUTS, from draws of the guide on, and sets the guide beside it.

    For a few data: one chain takes some thousands of gradients of the model on all of them. A chain that starts in
    one mode of the posterior may never find another.

    Args:
        pair: any model/guide pair whose latents are continuous.
        data: its arguments for the chosen data, tensors of shape (n, ...), or None.
        num_samples: draws per chain.
        warmup: steps before them, in which step size and mass matrix adapt.
        num_chains: chains, one after the other.
        seed: of all draws; the global random state is left alone.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, an argument is out of range, a latent is discrete or
            masked, or log p(x, z) is not finite where a chain begins.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> comparison = compare_with_nuts(PPCA(8, 2), torch.randn(3, 8), num_samples=50, warmup=50)
        >>> comparison.shift()["z"].shape
        torch.Size([3, 2])
    """
    for name, value in {"num_samples": num_samples, "warmup": warmup, "num_chains": num_chains}.items():
        check_count(name, value)
    if num_samples < 4:
        raise ValueError(f"num_samples must be at least 4 for diagnostics of the chains, got {num_samples}")
    with posterior_sampler(pair, data, seed=seed) as posterior:
        plates, latents = inner_plates(posterior), posterior.latents
        energy = _Energy(posterior, plates)

        def draw(part: PosteriorSampler, s: int) -> dict[str, Tensor]:
            drawn, _ = part.draw(s)
            return {name: by_datum(drawn[name], plates[name]) for name in latents}

        blocks = list(in_blocks(posterior, num_samples * num_chains, draw))
        chain = partial(_run_chain, energy, num_samples, warmup)
        runs = each_seeded(range(num_chains), lambda _: chain(), device=posterior.device)
    chains = {name: torch.stack([run[name] for run, _ in runs]) for name in latents}
    diagnostics = {name: _diagnose(values) for name, values in chains.items()}
    return NUTSComparison(
        guide={name: torch.cat([block[name] for block in blocks]) for name in latents},
        nuts={name: values.flatten(0, 1) for name, values in chains.items()},
        r_hat={name: r_hat for name, (r_hat, _) in diagnostics.items()},
        ess={name: ess for name, (_, ess) in diagnostics.items()},
        num_chains=num_chains,
        num_divergences=sum(divergences for _, divergences in runs),
    )


class _Energy:
    """−log p(x, z) of all data, in coordinates in which every latent is unconstrained, of double precision."""

    def __init__(self, posterior: PosteriorSampler, plates: dict[str, Plates]) -> None:
        self.posterior, self.plates, names = posterior, plates, posterior.latents
        sites = once(posterior)
        discrete = [name for name in names if sites[name].fn.support.is_discrete]
        if discrete:
            raise ValueError(f"NUTS needs continuous latents, but {discrete} are discrete")
        for name in names:
            check_movable(name, sites[name].value)
        masked = [name for name in names if not bool(mask_of(sites[name], plates[name]).all())]
        if masked:
            raise ValueError(f"NUTS needs a density of every latent, but a mask leaves out some of {masked}")
        again = once(posterior)
        for name in names:
            bounds = zip(*(bounds_of(support_of(at[name].fn)) for at in (sites, again)), strict=True)
            if not all(torch.equal(a, b) for a, b in bounds):
                raise ValueError(f"NUTS needs fixed supports, but that of {name!r} depends on other latents")
        self.transforms: dict[str, Transform] = {z: from_reals(z, sites[z].fn) for z in names}
        self.of = {z: posterior.sampler.value(sites[z], 1) for z in names}

    def start(self) -> dict[str, Tensor]:
        """Unconstrained coordinates of one draw from the guide."""
        latents, _ = self.posterior.draw(1)
        coordinates = {z: self.transforms[z].inv(latents[z].value.double()).clone() for z in self.posterior.latents}
        energy = float(self(coordinates))
        if not math.isfinite(energy):
            raise ValueError(f"log p(x, z) is {-energy:g} at a draw from the guide, where the chain is to begin")
        return coordinates

    def latents(self, coordinates: dict[str, Tensor]) -> Latents:
        """The latents (s, *plates, n, *event) at coordinates with s leading values."""
        values = {z: self.transforms[z](u) for z, u in coordinates.items()}
        return {z: replace(of, value=values[z].to(of.value.dtype)) for z, of in self.of.items()}

    def __call__(self, coordinates: dict[str, Tensor]) -> Tensor:
        """The potential energy at coordinates of one sample."""
        latents = self.latents(coordinates)
        likelihood, prior = self.posterior.log_joint(latents)
        volumes = [t.log_abs_det_jacobian(coordinates[z], t(coordinates[z])) for z, t in self.transforms.items()]
        return -sum((term.double().sum() for term in (*prior.values(), *volumes)), likelihood.double().sum())


def _run_chain(energy: _Energy, num_samples: int, warmup: int) -> tuple[dict[str, Tensor], int]:
    """Draws of one chain by site, (s, n, *plates, *event), and how many transitions diverged."""
    from pyro.infer import MCMC, NUTS

    start = energy.start()
    kernel = NUTS(potential_fn=energy)
    chain = MCMC(kernel, num_samples, warmup_steps=warmup, initial_params=start, disable_progbar=True, transforms={})
    with torch.enable_grad():
        chain.run()
    coordinates = {z: values.detach().squeeze(1) for z, values in chain.get_samples().items()}
    latents = energy.latents(coordinates)
    values = {z: by_datum(latents[z], energy.plates[z]).cpu() for z in energy.posterior.latents}
    return values, len(chain.diagnostics()["divergences"]["chain 0"])


def _diagnose(chains: Tensor) -> tuple[Tensor, Tensor]:
    """R̂ and the bulk effective sample size of chains (c, s, ...), each (...)."""
    arviz = import_arviz()
    _, s, *shape = chains.shape
    halves = chains[:, : s // 2 * 2].unflatten(1, (2, -1)).flatten(0, 1)  # split here, since ArviZ asks for two chains
    columns = {str(i): column.numpy() for i, column in enumerate(halves.double().flatten(2).unbind(-1))}
    of = arviz.convert_to_dataset(columns)
    with np.errstate(divide="ignore", invalid="ignore"):  # of a chain that never moves, R̂ is NaN
        r_hat, ess = arviz.rhat(of), arviz.ess(of)
    return tuple(  # type: ignore[return-value]
        torch.tensor(np.array([float(values[name]) for name in columns])).reshape(shape) for values in (r_hat, ess)
    )


def _extreme(values: dict[str, Tensor]) -> tuple[float, str]:
    """The largest value and the datum and dimension that it belongs to."""
    name, of = max(values.items(), key=lambda item: float(item[1].max()))
    datum, element = divmod(int(of.flatten().argmax()), max(1, of[0].numel()))
    return float(of.max()), f"datum {datum}, {elements(name, tuple(of.shape[1:]))[element]}"
