"""A pair on its data: draws of every latent, their densities, and data drawn anew, whatever the pair's code.

`ppvae.sampling.importance` sums over draws and keeps none of them; here they are handed out, for what looks at the
latents themselves: predictive checks, calibration, Markov chains. Discrete latents that are marked for enumeration are
drawn like any other; what needs their sum finds in `summed` which they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae._validate import check_autocast, check_seed, names_of
from ppvae.observed import check_observed
from ppvae.pair import Batch, check_batch, check_data, check_pair, device_of, take
from ppvae.params import LocalParams
from ppvae.rng import get_rng, set_rng
from ppvae.sampling.agreement import Agreement, check_alike
from ppvae.sampling.enumeration import Enumeration
from ppvae.sampling.eval_mode import evaluating, naming_nonfinite
from ppvae.sampling.latent import Latent
from ppvae.sampling.sampler import PROBE_DATA, PROBE_SAMPLES, Sampler, choose_sampler
from ppvae.traces import Site, same_values, sites

Places = dict[str, tuple[int, tuple[int, ...]]]
"""Of observed sites by name: the argument that is the value, and the strides with which it is read."""

Latents = dict[str, Latent]
"""Values of sites by name, each (s, *plates, n, *event)."""


class _Unobserved(Messenger):
    """Draws these observed sites anew."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._names = set(names)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self._names:
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


@dataclass(frozen=True)
class PosteriorSampler:
    """A pair on its data: draws of its latents, their densities, and data drawn anew.

    Made by `posterior_sampler`, and for use inside it. Latents are given and taken as `Latent`s by site, whose `value`
    is (s, *plates, n, *event), and a density is one number for each draw of each datum, (s, n), in nats. No scale, no
    factor of the guide and no term of training alone is part of it; masks are.

    Every method is differentiable in the latents where gradients are on (`torch.enable_grad()`), and draws with the
    global generators, which `posterior_sampler` has seeded.

    Attributes:
        sampler: how the pair is run with several samples of each datum.
        data: its arguments.
        latents: names of the sites that the model does not observe, in its order.
        observed: names of the sites that it observes, without `pyro.factor` and terms of training alone.
        summed: the latents that are marked for enumeration and may be summed over; none unless it was asked for.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> with posterior_sampler(PPCA(8, 2), (torch.zeros(5, 8),)) as posterior:
        ...     latents, log_q = posterior.draw(10)
        ...     log_likelihood, log_prior = posterior.log_joint(latents)
        >>> latents["z"].value.shape, log_q["z"].shape, log_likelihood.shape
        (torch.Size([10, 5, 2]), torch.Size([10, 5]), torch.Size([10, 5]))
    """

    sampler: Sampler
    data: Batch
    latents: tuple[str, ...]
    observed: tuple[str, ...]
    summed: Enumeration = field(default_factory=Enumeration)

    def __len__(self) -> int:
        """How many data, n."""
        return check_batch(self.data)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(t.device for t in self.data if t is not None)

    def draw(self, s: int) -> tuple[Latents, dict[str, Tensor]]:
        """`s` draws from the guide for every datum, and log q of each of its sites, (s, n).

        Auxiliary ones are among them, but for those that are marked for enumeration: log q is summed over them.
        """
        latents, log_q = self.sampler.posterior(self.sampler.guide(self.data, s, {}, {}), s)
        return latents, self.sampler.log_q(self.data, s, latents, log_q, {})

    def log_posterior(self, latents: Latents) -> dict[str, Tensor]:
        """Log q of each guide site at these latents, (s, n).

        Raises:
            KeyError: where the guide can score its own draws alone, in Pyro's words (a flow without an inverse).
            NotImplementedError: the same in torch's words.
        """
        s = num_samples(latents)
        _, log_q = self.sampler.posterior(self.sampler.guide(self.data, s, latents, {}), s)
        return self.sampler.log_q(self.data, s, latents, log_q, {})

    def check_density(self) -> None:
        """Checks that log p(x, z) − log q(z|x) of its draws is the log of an importance weight.

        Raises:
            ValueError: naming a point mass, or an auxiliary variable of the guide that is not summed over.
        """
        density = self.sampler.density
        density.check()
        if density.reversed:
            raise ValueError(
                f"the guide draws {list(density.reversed)}, which the model does not have: their reverse model makes "
                'elbo and log_marginal by importance sampling right, and no other use of log q(z|x); start="prior" of '
                "Annealed needs no guide"
            )

    def log_joint(self, latents: Latents) -> tuple[Tensor, dict[str, Tensor]]:
        """Log p(x|z), factors included, and log p of each latent site at these latents, each (s, n)."""
        return self.sampler.joint(self.model_trace(latents), num_samples(latents))

    def log_likelihood(self, latents: Latents) -> dict[str, Tensor]:
        """Log p of each observed site at these latents, (s, n)."""
        at, s = sites(self.model_trace(latents)), num_samples(latents)
        return {name: self.sampler.log_prob(at[name], s) for name in self.observed}

    def model_trace(self, latents: Latents) -> Trace:
        """The model's trace at these latents."""
        trace = self.sampler.model(self.data, num_samples(latents), latents, {})
        self.check_sites(sites(trace))
        return trace

    def predict(self, latents: Latents) -> Latents:
        """Draws of the observed sites given these latents: x ~ p(x|z)."""
        s = num_samples(latents)
        with _Unobserved(self.observed):
            drawn = sites(self.sampler.model(self.data, s, latents, {}))
        self.check_sites(drawn)
        return {name: self.sampler.value(drawn[name], s) for name in self.observed}

    def check_sites(self, of_model: Mapping[str, Site]) -> None:
        """Checks that the model has the same sites for these data as for those that it was looked at on.

        Raises:
            ValueError: naming the others: a latent that is not known here would be drawn from its prior in every run.
        """
        known = {*self.latents, *self.observed}
        found = {name for name, site in of_model.items() if site.is_drawn or _is_data(site)}
        if other := sorted(found ^ known):
            raise ValueError(
                f"the model has the sites {other} for some of the data and not for others, and what looks at latents "
                "themselves needs the same ones for all: let their number be that of all data, not of a minibatch "
                "(elbo, and log_marginal by importance sampling, take such pairs)"
            )

    def parts(self, s: int) -> Iterator[tuple[slice, PosteriorSampler]]:
        """The data in blocks of which `s` samples each stay within the memory budget, with their places."""
        n, size = len(self), max(1, self.sampler.rows // s)
        for start in range(0, n, size):
            index = slice(start, min(start + size, n))
            yield index, replace(self, data=take(self.data, index))


@contextmanager
def posterior_sampler(
    pair: nn.Module,
    data: Batch,
    *,
    seed: int = 0,
    given: Sequence[str] = (),
    summed: bool = False,
    autocast: torch.dtype | None = None,
) -> Iterator[PosteriorSampler]:
    """Gives a pair on its data, in eval mode and without gradients, with its own parameters and random numbers.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), or None.
        seed: of all draws inside; the global random state is restored on leaving.
        given: observed sites whose density is left out of the joint; they must depend on no latent.
        summed: whether the latents that are marked for enumeration are to be summed over; the guide may miss those.
        autocast: dtype of products in the pair's code, e.g. `torch.bfloat16`; None for its own.

    Yields:
        The pair on its data, these on the pair's device.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or the model has latents that the guide lacks and
            that are to be drawn.

    Example:
        The mean and the spread of q(z|x) of each datum:

        >>> import torch
        >>> from ppvae.models import PPCA
        >>> with posterior_sampler(PPCA(8, 2), (torch.randn(5, 8),), seed=1) as posterior:
        ...     z = posterior.draw(100)[0]["z"].value
        >>> z.mean(0).shape, z.std(0).shape
        (torch.Size([5, 2]), torch.Size([5, 2]))
    """
    check_pair(pair)
    check_data(data)
    check_seed(seed)
    check_autocast(autocast)
    check_alike(pair, data, (seed, given))
    device = device_of(pair, data)
    everywhere = slice(None)
    data = take(data, everywhere, device)
    with evaluating(pair, seed, device=device, params=LocalParams(pair, attach=False)), naming_nonfinite(data):
        probe = take(data, slice(0, PROBE_DATA), device)
        sampler = choose_sampler(pair, probe, PROBE_SAMPLES, names_of(given))
        enumeration = sampler.enumeration
        if enumeration.model and not summed:
            raise ValueError(
                f"the model has latents that the guide does not sample, {list(enumeration.model)}: "
                "log_marginal sums over them, but they cannot be drawn from a posterior"
            )
        sampler = replace(sampler, enumeration=Enumeration())
        latents, _ = sampler.posterior(sampler.guide(probe, 1, {}, {}), 1)
        trace = sampler.model(probe, 1, latents, {})
        of_model = sites(trace).values()
        posterior = PosteriorSampler(
            replace(sampler, autocast=autocast),
            data,
            tuple(site.name for site in of_model if site.is_drawn),
            tuple(site.name for site in of_model if _is_data(site)),
            enumeration if summed else Enumeration(),
        )
        check_observed(trace, probe, data)
        if sampler.given or any(site.is_masked for site in of_model):
            _check_agreement(posterior, device)
        yield posterior


def _check_agreement(posterior: PosteriorSampler, device: torch.device) -> None:
    """Compares masks, and what is conditioned on, in all of the data; the random numbers stay as they are."""
    rng, sampler, s = get_rng(device), posterior.sampler, 2
    for index, part in posterior.parts(s):
        guide_trace = sampler.guide(part.data, s, {}, {})
        trace = part.model_trace(sampler.posterior(guide_trace, s)[0])
        found = Agreement(index.start)
        found.add(sampler.unequal_masks(trace, guide_trace, s, slice(None)), sampler.given_range(trace, s))
        found.check()
    set_rng(rng, device)


def _is_data(site: Site) -> bool:
    """Whether a site observes data, and is no factor and no term of training alone."""
    return site.role == "observed" and not site.is_factor


def num_samples(latents: Latents) -> int:
    """How many draws of each datum these are, s."""
    return len(next(iter(latents.values())).value)


@dataclass(frozen=True)
class Simulated:
    """One draw from the joint p(x, z) for every datum of a template.

    Attributes:
        latents: z ~ p(z) by site, each of shape (1, *plates, n, *event).
        data: the pair's arguments with the observed ones replaced by x ~ p(x|z).
    """

    latents: Latents
    data: Batch


def simulate(template: PosteriorSampler) -> Simulated:
    """Draws z ~ p(z) and x ~ p(x|z) from the model, once for every datum of the template.

    Arguments that the model observes as they are become draws; the others (conditions, masks) stay.

    Args:
        template: the pair on data, of which the values that are observed do not matter; on the pair's device.

    Returns:
        The latents and the data that were made of them.

    Raises:
        ValueError: where an observed site's value is no argument as it is, or where the likelihood depends on the
            observed values themselves (an autoregressive net that is fed the data), so that one pass cannot draw them.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> with posterior_sampler(PPCA(8, 2), (torch.zeros(100, 8),)) as template:
        ...     drawn = simulate(template)
        >>> drawn.latents["z"].value.shape, drawn.data[0].shape
        (torch.Size([1, 100, 2]), torch.Size([100, 8]))
    """
    template = _one_by_one(template)
    places = _places(template, sites(template.model_trace(template.draw(1)[0])))
    for name in template.observed:
        if name not in places:
            raise ValueError(
                f"the observed site {name!r} takes no argument of the pair as it is: its draws cannot be put in the "
                "place of the data. Compute what is observed before it is given to the pair"
            )
    with _Unobserved(template.observed):
        drawn = sites(template.sampler.model(template.data, 1, {}, {}))
    latents = {name: template.sampler.value(drawn[name], 1) for name in template.latents}
    data = _in_place_of(template.data, {name: drawn[name].value.detach() for name in template.observed}, places)
    _check_one_pass(replace(template, data=data), latents, drawn, template.observed)
    return Simulated(latents, data)


def check_predictable(posterior: PosteriorSampler) -> None:
    """Checks that the observed sites can be drawn anew: that their density is fed no data that they would replace.

    Tried out on a few data, for the sites that take an argument of the pair as it is. Elements that a mask leaves out
    stay as they are: the mask may be made of them.

    Raises:
        ValueError: naming the site whose density is.
    """
    few = _one_by_one(replace(posterior, data=take(posterior.data, slice(0, PROBE_DATA))))
    latents, _ = few.draw(1)
    seen = sites(few.model_trace(latents))
    places = _places(few, seen)
    with _Unobserved(places):
        drawn = sites(few.model_trace(latents))
    values = {x: torch.where(seen[x].counted(), drawn[x].value, seen[x].value) for x in places}
    _check_one_pass(replace(few, data=_in_place_of(few.data, values, places)), latents, drawn, places)


def _one_by_one(posterior: PosteriorSampler) -> PosteriorSampler:
    """The same, run as the pair was written, on data that can be written over."""
    data = tuple(t if t is None else t.contiguous() for t in posterior.data)
    return replace(posterior, sampler=replace(posterior.sampler, plate_dim=None), data=data)


def _places(template: PosteriorSampler, seen: Mapping[str, Site]) -> Places:
    """The places of the observed sites that take an argument of the pair as it is; `seen` is the model's, run on it."""
    places: Places = {}
    for name in template.observed:
        value = seen[name].value
        same = [i for i, t in enumerate(template.data) if same_values(value, t)]
        places |= {name: (same[0], value.stride())} if same else {}
    return places


def _in_place_of(data: Batch, values: dict[str, Tensor], places: Places) -> Batch:
    """The arguments of a pair with values of observed sites where these take them from."""
    new = list(data)
    for name, (i, stride) in places.items():
        new[i] = torch.empty_like(data[i])
        new[i].as_strided(values[name].shape, stride).copy_(values[name])  # it may be observed reshaped or transposed
    return tuple(new)


def _check_one_pass(
    posterior: PosteriorSampler, latents: Latents, drawn: Mapping[str, Site], names: Iterable[str]
) -> None:
    """Checks that draws of these observed sites have the same density when the model is given them as its data."""
    again = sites(posterior.sampler.model(posterior.data, 1, latents, {}))
    for name in names:
        before, after = (posterior.sampler.log_prob(at[name], 1).double() for at in (drawn, again))
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"the density of the observed site {name!r} depends on the data that the model is given besides: it "
                "cannot be drawn in one pass (an autoregressive likelihood, a mask that is made of the data, or a "
                "label that is read from an argument and not from its site?)"
            )
