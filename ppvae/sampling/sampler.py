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
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppvae.compile.allocator import Allocations
from ppvae.pair import (
    Batch,
    Running,
    check_batch,
    check_data_plate,
    check_masks,
    check_sites,
    failing_on,
    warn_of_factors,
)
from ppvae.sampling.elimination import check_eliminated, depends_on_values, eliminated, side_by_side
from ppvae.sampling.enumeration import Enumeration
from ppvae.traces import Site, sites

SAMPLES = "_samples"
"""Name of the outer plate."""
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
class Latent:
    """Values of a latent site, shape (s, *plates, n, *event), whatever form the pair was run in.

    Attributes:
        value: the values.
        event_dim: how many dims the event has.
        plate_dims: how many of the dims of `plates` the site needs itself; further ones on the left are the places,
            of size 1, of plates that others lie in.
    """

    value: Tensor
    event_dim: int
    plate_dims: int

    @property
    def data_dim(self) -> int:
        """Where the data lie."""
        return self.value.dim() - 1 - self.event_dim

    def data(self, index: slice) -> Latent:
        """The values of some of the data."""
        before = (slice(None),) * self.data_dim
        return replace(self, value=self.value[(*before, index)])

    def folded(self) -> Tensor:
        """The values with the samples repeated along the data: (*plates, s·n, *event)."""
        dim = self.data_dim
        value = self.value.movedim(0, dim - 1).flatten(dim - 1, dim)
        return value.flatten(0, max(0, value.dim() - 1 - self.event_dim - self.plate_dims))  # without others' places

    def plated(self, plate_dim: int) -> Tensor:
        """The values with the samples at `plate_dim` of the batch: (s, *plates, n, *event)."""
        value = self.value
        while value.dim() - self.event_dim < -plate_dim:
            value = value.unsqueeze(1)  # the place of a plate that this site does not lie in
        return value


class _Replay(Running):
    """Gives latent sites the values in `values`."""

    def __init__(self, which: Literal["model", "guide"], values: dict[str, Tensor]) -> None:
        super().__init__(which)
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


@dataclass(frozen=True)
class Sampler:
    """Runs a pair with s samples of each datum and reads its traces as tensors (s, n).

    Attributes:
        pair: any model/guide pair.
        plate_dim: dim of the outer plate of samples; None for the data repeated along the batch.
        rows: the most (sample, datum) rows to run at once.
        enumeration: the latents that are summed over and not drawn.
        given: the observed sites whose density is left out.
    """

    pair: nn.Module
    plate_dim: int | None = None
    rows: int = 1
    enumeration: Enumeration = field(default_factory=Enumeration)
    given: tuple[str, ...] = ()

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

    def _run(
        self, which: Literal["model", "guide"], block: Batch, s: int, latents: dict[str, Latent], fixed: Values
    ) -> Trace:
        function: Callable[..., Any] = getattr(self.pair, which)
        n = check_batch(block)
        with poutine.trace() as tracer, self._enumerated(which):
            if self.plate_dim is None:
                n *= s
                values = {name: latent.folded() for name, latent in latents.items()}
                with _Replay(which, values | self.enumeration.values_for(fixed, n)):
                    function(*(_repeat(t, s) for t in block))
            else:
                values = {name: latent.plated(self.plate_dim) for name, latent in latents.items()}
                replay = _Replay(which, values | self.enumeration.values_for(fixed, n))
                with pyro.plate(SAMPLES, s, dim=self.plate_dim), replay:
                    function(*block)
        check_data_plate(tracer.trace, n, where=which)
        if is_validation_enabled():
            self.enumeration.check(tracer.trace, names=getattr(self.enumeration, which))
        tracer.trace.compute_log_prob()
        return tracer.trace

    def _enumerated(self, which: Literal["model", "guide"]) -> AbstractContextManager[None]:
        """The values side by side of the sites that are summed over one after another."""
        if which == "guide" or not self.enumeration.eliminates:
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

    def value(self, site: Site, s: int) -> Latent:
        """The site's value, (s, *plates, n, *event)."""
        dims = [plate.dim or 0 for plate in site.plates if plate.name != SAMPLES]
        value = self._unfold(site.value, site.value.dim() - 1 - site.event_dim, s)
        return Latent(value, site.event_dim, max(0, -1 - min(dims, default=0)))

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
    with failing_on(probe, pair, "data"):
        guide_trace = repeated.guide(probe, 1, {}, {})
        latents = repeated.posterior(guide_trace, 1)[0]
        model_trace = repeated.model(probe, 1, latents, {})
    check_sites(model_trace, guide_trace)
    check_masks(model_trace, guide_trace)
    warn_of_factors(guide_trace)
    enumeration = Enumeration.of(model_trace, guide_trace)
    repeated = replace(repeated, enumeration=enumeration, given=tuple(given))
    if enumeration.eliminates:
        _check_chain(repeated, probe, latents, model_trace)
    if given:
        _check_given(repeated, probe)
    device = next(t.device for t in probe if t is not None)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), Allocations() as single:
        # Not the first run, which may make what is made once; the draws that follow are the same with and without it.
        Sampler(pair).guide(probe, 1, {}, {})
        Sampler(pair).model(probe, 1, latents, {})
    most = _most_data(model_trace, guide_trace)
    if num_samples == 1:
        return replace(repeated, rows=min(most, _rows(single.bytes / n, 0.0, probe)))
    fixed = enumeration.values[-1]
    with Allocations() as several:
        trace = repeated.guide(probe, s, {}, fixed)
        latents, log_q = repeated.posterior(trace, s)
        expected = _total(*repeated.joint(repeated.model(probe, s, latents, fixed), s), log_q)
    bytes_per_row = (several.bytes - single.bytes) / (n * (s - 1))
    repeated = replace(repeated, rows=_rows(bytes_per_row, single.bytes - n * bytes_per_row, probe))
    plate = replace(repeated, plate_dim=-1 - _nesting(model_trace, guide_trace))
    repeated = replace(repeated, rows=min(most, repeated.rows))
    try:
        _, log_q = plate.posterior(plate.guide(probe, s, latents, fixed), s)
        actual = _total(*plate.joint(plate.model(probe, s, latents, fixed), s), log_q)
    except Exception:  # whatever the user's code raises in a form that it was not written for
        return repeated
    same = actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-4, atol=1e-3, equal_nan=True)
    return plate if same else repeated


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
            raise ValueError(
                f"given names {name!r}, whose density depends on latents, so that leaving it out is not to condition "
                "on it: subtract an estimate of its own log-density instead"
            )
    if set(observed) <= set(sampler.given):
        raise ValueError(f"given names every site that the model observes, {observed}: nothing is left to score")


def _nesting(*traces: Trace) -> int:
    """How many dims the plates take."""
    return max(-(plate.dim or 0) for trace in traces for site in sites(trace).values() for plate in site.plates)


def _most_data(*traces: Trace) -> int:
    """The most data that the plates take: a plate of N data with a subsample takes no more than N."""
    plates = [plate for trace in traces for site in sites(trace).values() for plate in site.plates]
    return min((plate.full_size or 0 for plate in plates if plate.full_size != plate.size), default=sys.maxsize)


def _rows(bytes_per_row: float, shared: float, probe: Batch) -> int:
    """The most rows to run at once, given the bytes that each takes and those that do not grow with the rows."""
    device = next(t.device.type for t in probe if t is not None)
    most = ROW_BLOCK.get(device, ROW_BLOCK["cuda"])
    wanted = max(CACHE.get(device, MEMORY_BUDGET), SHARED * shared)
    affordable = int(min(MEMORY_BUDGET, wanted) / max(1.0, bytes_per_row))
    return max(1, min(most, affordable))


def _total(log_likelihood: Tensor, log_prior: dict[str, Tensor], log_posterior: dict[str, Tensor]) -> Tensor:
    """Every log-probability of one draw, side by side."""
    return torch.stack([log_likelihood, *log_prior.values(), *log_posterior.values()])


def _repeat(tensor: Tensor | None, s: int) -> Tensor | None:
    if tensor is None or s == 1:
        return tensor
    return tensor.repeat(s, *[1] * (tensor.dim() - 1))
