"""How a pair is run with several samples of each datum at once: one sampler, two forms.

In an outer plate the guide encodes every datum once, but not every pair's code broadcasts over it. On the data
repeated along the batch every pair runs as it was written, but encodes every datum anew for each sample.
`choose_sampler` finds out which form a pair takes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae.compile.allocator import Allocations
from ppvae.failures import failing_on, naming_arguments
from ppvae.late_params import warn_of_waiting
from ppvae.observed import OnlyDistributions, check_observed
from ppvae.pair import Batch, check_batch, check_data_plate, check_masks, check_sites, device_of, take, warn_of_factors
from ppvae.rng import kept_rng
from ppvae.sampling.agreement import depends_on_latents
from ppvae.sampling.elimination import check_eliminated, depends_on_values, eliminated, side_by_side
from ppvae.sampling.enumeration import Enumeration
from ppvae.sampling.eval_mode import precision, validation
from ppvae.sampling.guide_density import GuideDensity
from ppvae.sampling.latent import SAMPLES, Latent, Replay, Which, own_plates, reshaped
from ppvae.sampling.quick_density import score_quickly
from ppvae.sampling.support import moved_by_latents, score_within
from ppvae.traces import Site, may_be_masked, site_of, sites

PROBE_DATA, PROBE_SAMPLES = 5, 3
"""Sizes of the trial runs: unequal and unusual, so that no wrong broadcast passes by its size."""
ROW_BLOCK = {"cpu": 2**13, "cuda": 2**15}
"""The most (sample, datum) rows that a model scores at once."""
CACHE = {"cpu": 2**25}
"""Bytes that one evaluation of the model should stay below, where more rows would not be faster."""
SHARED = 16
"""More rows are faster until they take so many times what all of them share, e.g. a prior's encoded pseudo-inputs."""
GIVEN_VALUES = 64
"""Joint values of the enumerated sites at which the sites to condition on are looked at."""
MEMORY_BUDGET = 2**29
"""Bytes that one evaluation of the model may allocate, by a generous estimate."""


Values = dict[str, Tensor]
"""One joint value of the enumerated sites, each (*plates, 1, *event)."""


@dataclass(frozen=True)
class Sampler:
    """Runs a pair with s samples of each datum and reads its traces as tensors (s, n).

    Attributes:
        pair: any model/guide pair.
        plate_dim: dim of the outer plate of samples; None for the data repeated along the batch.
        rows: the most (sample, datum) rows to run at once.
        enumeration: the latents that are summed over and not drawn.
        given: the observed sites whose density is left out.
        density: what the density of the guide's draws takes.
        moved: the observed sites whose support depends on latents; None where that is not known yet.
        autocast: dtype of products in the pair's code; None for its own. Densities are computed outside of that.
    """

    pair: nn.Module
    plate_dim: int | None = None
    rows: int = 1
    enumeration: Enumeration = field(default_factory=Enumeration)
    given: tuple[str, ...] = ()
    density: GuideDensity = field(default_factory=GuideDensity)
    moved: tuple[str, ...] | None = None
    autocast: torch.dtype | None = None

    def guide(self, block: Batch, s: int, latents: dict[str, Latent], fixed: Values) -> Trace:
        """The guide's trace with `s` samples of each datum.

        Args:
            block: the data.
            s: samples of each.
            latents: values of sites that are not to be drawn.
            fixed: one joint value of the enumerated sites.
        """
        return self._run("guide", block, s, latents, fixed)

    def model(self, block: Batch, s: int, latents: dict[str, Latent], fixed: Values) -> Trace:
        """The model's trace at the given latents."""
        return self._run("model", block, s, latents, fixed)

    def _run(self, which: Which, block: Batch, s: int, latents: dict[str, Latent], fixed: Values) -> Trace:
        function: Callable[..., Any] = getattr(self.pair, which)
        n = check_batch(block)
        if self.plate_dim is None:
            n *= s
            block = tuple(_repeat(t, s) for t in block)
            values = {name: latent.folded() for name, latent in latents.items()}
        else:
            values = {name: latent.plated(self.plate_dim) for name, latent in latents.items()}
        values |= self.enumeration.values_for(fixed, n)
        options = {name: values[name] for name in self.density.latents} if which == "reverse" else {}
        samples = nullcontext() if self.plate_dim is None else pyro.plate(SAMPLES, s, dim=self.plate_dim)
        coarse = precision(self.autocast, block)
        with poutine.trace() as tracer, self._enumerated(which), samples, Replay(which, values, latents), coarse:
            function(*block, **options)
        check_data_plate(tracer.trace, n, where=which)
        if is_validation_enabled():
            self.enumeration.check(tracer.trace, names=getattr(self.enumeration, which, ()))
        with naming_arguments(tracer.trace, block):
            if which == "model" and self.moved != ():
                score_within(tracer.trace, self.moved)
            score_quickly(tracer.trace)
            tracer.trace.compute_log_prob()
        return tracer.trace

    def _enumerated(self, which: Which) -> AbstractContextManager[None]:
        """The values side by side of the sites that are summed over one after another."""
        if which != "model" or not self.enumeration.eliminates:
            return nullcontext()
        return side_by_side(self.enumeration.model, -1 - self._dims)

    @property
    def _dims(self) -> int:
        """How many dims on the right are those of plates, the outer one included."""
        return self.enumeration.nesting if self.plate_dim is None else -self.plate_dim

    def posterior(self, trace: Trace, s: int) -> tuple[dict[str, Latent], dict[str, Tensor]]:
        """Values of the drawn latents, and log q of the guide's sites; its factors are no density and are left out."""
        drawn = {name: site for name, site in sites(trace).items() if site.is_drawn}
        latents = {name: self.value(site, s) for name, site in drawn.items() if name not in self.enumeration.guide}
        return latents, {name: self.log_prob(site, s) for name, site in drawn.items()}

    def log_q(
        self, block: Batch, s: int, latents: dict[str, Latent], log_posterior: dict[str, Tensor], fixed: Values
    ) -> dict[str, Tensor]:
        """Log q of the guide's draws, as `posterior` has read it; summed over auxiliary variables that are marked.

        In the order of the guide each site adds what it does to log Σ_u q(u, z|x).
        """
        summed = self.density.summed
        if not summed.event_dims:
            return log_posterior
        scorer = replace(self, enumeration=self.enumeration.scoring(summed))
        total, n = [], check_batch(block)
        for values in summed.values:
            expanded = summed.values_for(values, n)
            u = {name: Latent.of_all(value, summed.event_dims[name], s) for name, value in expanded.items()}
            trace = self.guide(block, s, latents | u, fixed)
            total.append({name: scorer.log_prob(site, s) for name, site in sites(trace).items() if site.is_drawn})
        found, so_far = {}, torch.zeros(())
        joint = torch.zeros_like(torch.stack([next(iter(of.values())) for of in total]))
        for name in total[0]:
            joint = joint + torch.stack([of[name] for of in total])
            if name not in summed.event_dims:
                found[name] = joint.logsumexp(0) - so_far
                so_far = joint.logsumexp(0)
        return found

    def log_reverse(self, block: Batch, s: int, latents: dict[str, Latent], fixed: Values) -> dict[str, Tensor]:
        """Log r(u|z, x) of the auxiliary variables that the pair's `reverse` samples, at their draws: (s, n)."""
        wanted = self.density.reversed
        if not wanted:
            return {}
        trace = self._run("reverse", block, s, latents, fixed)
        found = {name: site for name, site in sites(trace).items() if site.is_drawn}
        if set(found) != set(wanted):
            raise ValueError(
                f"reverse must sample {list(wanted)}, what the guide draws and the model does not have; it samples "
                f"{list(found)}"
            )
        return {name: self.log_prob(found[name], s) for name in wanted}

    def joint(self, trace: Trace, s: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Log p(x|z), summed over the observed sites, and log p(z) of each latent site: each (s, n).

        Terms of training alone are left out, and so are the sites in `given`.
        """
        scored = [site for site in sites(trace).values() if site.role != "training"]
        chained = self._chained(trace, scored) if self.enumeration.eliminates else {}
        apart = [site for site in scored if site.name not in self.given and site.name not in chained]
        log_likelihood = [self.log_prob(site, s) for site in apart if not site.is_drawn]
        log_prior = {site.name: self.log_prob(site, s) for site in apart if site.is_drawn}
        if chained:
            n = max(plate.size for site in scored for plate in site.plates if plate.dim == -1)
            total = eliminated(trace, chained, {-1: n} if self.plate_dim is None else {self.plate_dim: s, -1: n})
            log_likelihood.append(self._unfold(total, total.dim() - 1, s))
        return torch.stack(log_likelihood).sum(0), log_prior

    def _chained(self, trace: Trace, scored: list[Site]) -> dict[str, Tensor]:
        """The densities of the latents that are summed over one after another, and of what depends on them.

        Raises:
            ValueError: naming a site that may not depend on them.
        """
        densities: dict[str, Tensor] = {}
        for site in scored:
            density = site.density()
            if site.name in self.enumeration.model:
                densities[site.name] = self.enumeration.unmasked(site, density)
            elif depends_on_values(density, self._dims):
                if site.is_drawn or site.name in self.given:
                    raise ValueError(
                        f"site {site.name!r} depends on the latents {list(self.enumeration.model)}, whose joint values "
                        "are too many to try each: what is drawn, or given, must not depend on such a chain"
                    )
                densities[site.name] = density
        return densities

    def log_prob(self, site: Site, s: int) -> Tensor:
        """The site's log-probability without its scale, summed over inner plates: (s, n)."""
        log_prob = site.density()
        if site.name in self.enumeration.num_values:
            log_prob = self.enumeration.unmasked(site, log_prob)
        if self.plate_dim is not None and log_prob.dim() < -self.plate_dim:
            log_prob = log_prob.expand(s, *log_prob.shape)  # of a value that is the same for every sample
        log_prob = self._unfold(log_prob, log_prob.dim() - 1, s)
        return log_prob.flatten(1, -2).sum(1) if log_prob.dim() > 2 else log_prob

    def outside(self, trace: Trace, s: int, latents: Sequence[str] | None = None) -> Tensor | None:
        """Which draws the model's prior gives no density, (s, n); None for a prior that gives all of them one.

        Args:
            trace: of the model.
            s: samples.
            latents: the sites to look at; None for all.
        """
        nodes = trace.nodes if latents is None else {name: trace.nodes[name] for name in latents}
        bounded = [site_of(node) for node in nodes.values() if node.get("outside") is not None]
        found = [site.is_outside() for site in bounded if site.is_drawn]
        draws = [self._any(outside, s) for outside in found if outside is not None]
        return torch.stack(draws).any(0) if draws else None

    def unequal_masks(self, model_trace: Trace, guide_trace: Trace, s: int, part: slice) -> dict[str, Tensor]:
        """By latent with a mask, the data of which it leaves other elements out in the model than in the guide, (1, n).

        Args:
            model_trace: of some of the data.
            guide_trace: of all.
            s: samples.
            part: which of the data the former is of.
        """
        found = {}
        for name in model_trace.nodes.keys() & guide_trace.nodes.keys():
            nodes = model_trace.nodes[name], guide_trace.nodes[name]
            if nodes[0]["type"] != "sample" or nodes[0]["is_observed"] or not any(map(may_be_masked, nodes)):
                continue
            latent, site = map(site_of, nodes)
            theirs, ours = (self.value(replace(of, value=_counted(of)), s) for of in (site, latent))
            differ = theirs.data(part).value != ours.value
            found[name] = differ.movedim(-1 - site.event_dim, 0).flatten(1).any(1).unsqueeze(0)
        return found

    def given_range(self, trace: Trace, s: int) -> dict[str, Tensor]:
        """The least and the greatest log-density of each site to condition on among the samples, (2, n)."""
        at = sites(trace) if self.given else {}
        log_p = {name: self.log_prob(at[name], s) for name in self.given}
        return {name: torch.stack([of.amin(0), of.amax(0)]) for name, of in log_p.items()}

    def _any(self, flags: Tensor, s: int) -> Tensor:
        """Whether one of the elements in inner plates is true: (s, n)."""
        if self.plate_dim is not None and flags.dim() < -self.plate_dim:
            flags = flags.expand(s, *flags.shape)
        flags = self._unfold(flags, flags.dim() - 1, s)
        return flags.flatten(1, -2).any(1) if flags.dim() > 2 else flags

    def value(self, site: Site, s: int) -> Latent:
        """The site's value, (s, *plates, n, *event)."""
        plates = own_plates(site.plates)
        dim = site.value.dim() - 1 - site.event_dim
        value = reshaped(site.value, lambda value: self._unfold(value, dim, s))
        return Latent(value, site.event_dim, max(0, -1 - min((plate.dim or 0 for plate in plates), default=0)), plates)

    def _unfold(self, tensor: Tensor, dim: int, s: int) -> Tensor:
        return tensor.unflatten(dim, (s, -1)).movedim(dim, 0) if self.plate_dim is None else tensor


def choose_sampler(pair: nn.Module, probe: Batch, num_samples: int, given: Sequence[str] = ()) -> Sampler:
    """Checks the contract on a few data, and finds the form and the size of blocks to run the pair in.

    The outer plate is used where it gives the same densities as the repeated data at the same latents.

    Raises:
        ValueError: naming the site that breaks the contract.
    """
    n = check_batch(probe)
    s = PROBE_SAMPLES + (n == PROBE_SAMPLES)  # code that takes samples for data would be right where they are as many
    repeated = Sampler(pair)
    with failing_on(probe, pair, "data"), OnlyDistributions():
        guide_trace = repeated.guide(probe, 1, {}, {})
        latents = repeated.posterior(guide_trace, 1)[0]
        model_trace = repeated.model(probe, 1, latents, {})
    warn_of_waiting(pair)
    check_sites(model_trace, guide_trace)
    check_observed(model_trace, probe, None)
    check_masks(model_trace, guide_trace)
    warn_of_factors(guide_trace)
    _check_other_size(repeated, probe, model_trace, guide_trace)
    enumeration = Enumeration.of(model_trace, guide_trace)

    def again() -> Trace:
        return repeated.model(probe, 1, repeated.posterior(repeated.guide(probe, 1, {}, {}), 1)[0], {})

    device = device_of(pair, probe)
    with kept_rng(device):
        moved = moved_by_latents(model_trace, again, PROBE_SAMPLES)
    repeated = replace(repeated, enumeration=enumeration, given=tuple(given), moved=moved)
    repeated = replace(repeated, density=_guide_density(repeated, probe, model_trace, guide_trace))
    if enumeration.eliminates:
        _check_chain(repeated, probe, latents, model_trace)
    if given:
        _check_given(repeated, probe)
    with kept_rng(device), validation(False), Allocations() as single:
        # Not the first run, which may make what is made once; the draws that follow are the same with and without it.
        # Nor under validation, as most blocks are not.
        Sampler(pair).guide(probe, 1, {}, {})
        Sampler(pair).model(probe, 1, latents, {})
    most = _most_data(model_trace, guide_trace)
    if num_samples == 1:
        return replace(repeated, rows=min(most, _rows(single.bytes / n, 0.0, probe)))
    fixed = enumeration.values[-1]
    with validation(False), Allocations() as several:
        latents, log_posterior = repeated.posterior(repeated.guide(probe, s, {}, fixed), s)
        expected = _total(repeated, probe, s, latents, log_posterior, fixed)
    repeated = replace(repeated, rows=min(most, _rows(*_growth(single, several, n, s), probe)))
    plate = replace(repeated, plate_dim=-1 - _nesting(model_trace, guide_trace))
    try:
        with validation(False), Allocations() as several:
            _, log_posterior = plate.posterior(plate.guide(probe, s, latents, fixed), s)
            actual = _total(plate, probe, s, latents, log_posterior, fixed)
    except Exception:  # whatever the user's code raises in a form that it was not written for
        return repeated
    same = actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-4, atol=1e-3, equal_nan=True)
    if not same:
        return repeated
    return replace(plate, rows=_rows(*_growth(single, several, n, s), probe))


def _check_chain(sampler: Sampler, probe: Batch, latents: dict[str, Latent], plain: Trace) -> None:
    """Checks that the latents that only the model has can be summed over one after another."""
    names = sampler.enumeration.model
    try:
        listed = sampler.model(probe, 1, latents, {})
    except (RuntimeError, ValueError, AssertionError) as error:  # more dims than torch has, or one for two sites
        raise ValueError(
            f"the latents {list(names)} have too many joint values to try each, and the model fails with the values of "
            "each in a dim of its own: write a chain as `for t in pyro.markov(range(T), history=...)`, where a site "
            f"depends on no earlier ones than its history. {error}"
        ) from error
    sampler.joint(listed, 1)
    check_eliminated(plain, listed, names, sampler.enumeration.nesting)


def _counted(site: Site) -> Tensor:
    """Which elements count, of the shape of its value: the outer plate expands no site whose value is given."""
    return torch.broadcast_tensors(site.counted(), site.value)[0]


def _guide_density(sampler: Sampler, probe: Batch, model_trace: Trace, guide_trace: Trace) -> GuideDensity:
    """What the density of the guide's draws takes; the draws that this needs leave the random numbers as they are."""

    def draw() -> dict[str, Tensor]:
        with kept_rng(device_of(sampler.pair, probe)):
            traces = [sampler.guide(probe, 1, {}, sampler.enumeration.values[-1]) for _ in range(PROBE_SAMPLES)]
        drawn = [sampler.posterior(trace, 1)[0] for trace in traces]
        return {name: torch.cat([latents[name].value for latents in drawn]) for name in drawn[0]}

    def run() -> Trace:
        return sampler.guide(take(probe, slice(0, 1)), 1, {}, sampler.enumeration.values[-1])

    return GuideDensity.of(sampler.pair, sites(model_trace), sites(guide_trace), draw, run)


def _check_other_size(sampler: Sampler, probe: Batch, *traces: Trace) -> None:
    """Runs another number of data where another plate is as large as the batch: which of them is the data plate?"""
    n = check_batch(probe)
    probe, s = (take(probe, slice(0, n - 1)), 1) if n > 1 else (probe, 2)
    plates = [plate for trace in traces for site in sites(trace).values() for plate in site.plates]
    if any(plate.size == n and plate.dim != -1 for plate in plates):
        with kept_rng(device_of(sampler.pair, probe)):
            latents, _ = sampler.posterior(sampler.guide(probe, s, {}, {}), s)
            sampler.model(probe, s, latents, {})


def _check_given(sampler: Sampler, probe: Batch) -> None:
    """Checks that the sites to condition on are observed, leave something, and depend on no latent.

    Then log p(x|y) = log p(x, y) − log p(y) is what is left when their density is left out.
    """
    traces = []
    for fixed in sampler.enumeration.values[:: -(-len(sampler.enumeration.values) // GIVEN_VALUES)]:
        trace = sampler.guide(probe, PROBE_SAMPLES, {}, fixed)
        latents, _ = sampler.posterior(trace, PROBE_SAMPLES)
        traces.append(sites(sampler.model(probe, PROBE_SAMPLES, latents, fixed)))
    observed = [name for name, site in traces[0].items() if site.role == "observed"]
    for name in sampler.given:
        if name not in observed:
            raise ValueError(f"given names {name!r}, which the model does not observe: it observes {observed}")
        log_p = torch.cat([sampler.log_prob(trace[name], PROBE_SAMPLES) for trace in traces])
        if not torch.allclose(log_p, log_p[:1].expand_as(log_p), rtol=1e-4, atol=1e-4, equal_nan=True):
            raise ValueError(depends_on_latents(name))
    if set(observed) <= set(sampler.given):
        raise ValueError(f"given names every site that the model observes, {observed}: nothing is left to score")


def _nesting(*traces: Trace) -> int:
    """How many dims the plates take."""
    return max(-(plate.dim or 0) for trace in traces for site in sites(trace).values() for plate in site.plates)


def _most_data(*traces: Trace) -> int:
    """The most data that the plates take: a plate of N data with a subsample takes no more than N."""
    plates = [plate for trace in traces for site in sites(trace).values() for plate in site.plates]
    return min((plate.full_size or 0 for plate in plates if plate.full_size != plate.size), default=sys.maxsize)


def _growth(single: Allocations, several: Allocations, n: int, s: int) -> tuple[float, float]:
    """The bytes that each row takes, and those that do not grow with rows, from runs of n data, once and s times."""
    bytes_per_row = (several.bytes - single.bytes) / (n * (s - 1))
    return bytes_per_row, single.bytes - n * bytes_per_row


def _rows(bytes_per_row: float, shared: float, probe: Batch) -> int:
    """The most rows to run at once, given the bytes that each takes and those that do not grow with the rows."""
    device = next(t.device for t in probe if t is not None).type
    most = ROW_BLOCK.get(device, ROW_BLOCK["cuda"])
    wanted = max(CACHE.get(device, MEMORY_BUDGET), SHARED * shared)
    affordable = int(min(MEMORY_BUDGET, wanted) / max(1.0, bytes_per_row))
    return max(1, min(most, affordable))


def _total(
    sampler: Sampler, probe: Batch, s: int, latents: dict[str, Latent], log_posterior: dict[str, Tensor], fixed: Values
) -> Tensor:
    """Every log-probability of some draws, side by side."""
    log_likelihood, log_prior = sampler.joint(sampler.model(probe, s, latents, fixed), s)
    log_prior |= sampler.log_reverse(probe, s, latents, fixed)
    log_q = sampler.log_q(probe, s, latents, log_posterior, fixed)
    return torch.stack([log_likelihood, *log_prior.values(), *log_q.values()])


def _repeat(tensor: Tensor | None, s: int) -> Tensor | None:
    if tensor is None or s == 1:
        return tensor
    return tensor.repeat(s, *[1] * (tensor.dim() - 1))
