"""Per-datum importance samples z ~ q(z|x) of any pair, and their log-probabilities site by site.

The one mechanism behind the ELBO, log p(x) and validation. For each block of data it yields

    log p(x|z),  log p(z) and log q(z|x) of every latent site,  each of shape (s, n),

without any scale (KL weight), without the factors of the guide, with masks. Draws are made in blocks whose
size depends on the number of samples alone, so the answer does not depend on how the scoring is chunked.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppvae.pair import (
    Batch,
    check_batch,
    check_data_plate,
    check_pair,
    check_sites,
    device_of,
    sample_sites,
)
from ppvae.params import local_params

SAMPLE_BLOCK = 256
ROW_BLOCK = 4096
MEMORY_BUDGET = 2**29
"""Bytes that one evaluation of the model may allocate, by a generous estimate."""


@dataclass(frozen=True)
class Draws:
    """Samples of a block of data and their unscaled log-probabilities, in nats.

    Attributes:
        start: index of the block's first datum.
        log_likelihood: Σ log p over the observed sites, shape (s, n).
        log_prior: log p of each latent site, (s, n).
        log_posterior: log q of each guide site, (s, n); auxiliary sites of the guide included.
    """

    start: int
    log_likelihood: Tensor
    log_prior: dict[str, Tensor]
    log_posterior: dict[str, Tensor]

    def log_weight(self) -> Tensor:
        """Log w = log p(x, z) − log q(z|x), shape (s, n)."""
        return self.log_likelihood + sum(self.log_prior.values()) - sum(self.log_posterior.values())

    def kl(self) -> dict[str, Tensor]:
        """Log q − log p of each site, (s, n): its mean over s estimates KL(q ‖ p) of that site."""
        sites = dict.fromkeys([*self.log_prior, *self.log_posterior])
        zero = torch.zeros_like(self.log_likelihood)
        return {z: self.log_posterior.get(z, zero) - self.log_prior.get(z, zero) for z in sites}


def importance_draws(
    pair: nn.Module, data: Batch, *, num_samples: int, batch_size: int | None = None, seed: int = 0
) -> Iterator[Draws]:
    """Draws `num_samples` times from the guide for every datum and scores each draw, in eval mode, no gradients.

    The samples of one datum arrive in consecutive blocks, the data in order; exactly `num_samples` per datum.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), or None.
        num_samples: s, draws per datum.
        batch_size: the most data that the model scores at once; by default what a memory budget allows.
        seed: of all draws; the global random state is neither read nor changed.

    Yields:
        Blocks of draws, on the pair's device.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, naming the argument or site.
    """
    check_pair(pair)
    n = check_batch(data)
    check_count("num_samples", num_samples)
    if batch_size is not None:
        check_count("batch_size", batch_size)
    with evaluating(pair, seed):
        sampler = _choose_sampler(pair, _take(data, slice(0, 3), device_of(pair)))
    samples = [stop - start for start, stop in _blocks(num_samples, min(SAMPLE_BLOCK, sampler.rows))]
    seeds = torch.Generator().manual_seed(seed)
    for start, stop in _blocks(n, max(1, sampler.rows // samples[0])):
        block = _take(data, slice(start, stop), device_of(pair))
        for i, s in enumerate(samples):
            block_seed = int(torch.randint(2**62, (), generator=seeds))
            # Validation costs time: a datum's first samples are enough to find a value off the support.
            with evaluating(pair, block_seed), validation(i == 0):
                draws = _draw(sampler, block, s, start, batch_size or stop - start)
            yield draws


@contextmanager
def evaluating(pair: nn.Module, seed: int, *, attach: bool = False) -> Iterator[None]:
    """Runs `pair` in eval mode without gradients, its parameters its own, its randomness that of `seed`.

    Restores every module's mode and the global random state. With `attach`, parameters created inside stay.
    """
    training = {module: module.training for module in pair.modules()}
    device = device_of(pair)
    pair.eval()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.no_grad(),
            local_params(pair, attach=attach),
        ):
            torch.manual_seed(seed)
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def validation(on: bool) -> Iterator[None]:
    """Pyro's validation, off unless `on` and the user's own setting agree; restored on leaving."""
    with pyro.validation_enabled(on and pyro.settings.get("validate_infer")):
        yield


class _Replay(Messenger):
    """Gives latent sites the values in `values`."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


@dataclass(frozen=True)
class _Latent:
    """Values of a latent site, shape (s, *plates, n, *event), whatever form the pair was run in."""

    value: Tensor
    event_dim: int

    def data(self, index: slice) -> _Latent:
        """The values of some of the data."""
        return _Latent(self.value.movedim(self.data_dim, 0)[index].movedim(0, self.data_dim), self.event_dim)

    def folded(self) -> Tensor:
        """The values with the samples repeated along the data: (*plates, s·n, *event)."""
        dim = self.data_dim
        value = self.value.movedim(0, dim - 1).flatten(dim - 1, dim)
        while value.dim() > self.event_dim + 1 and value.shape[0] == 1:
            value = value.squeeze(0)  # the place of a plate that this site does not lie in
        return value

    @property
    def data_dim(self) -> int:
        return self.value.dim() - 1 - self.event_dim


@dataclass(frozen=True)
class _Sampler:
    """Runs a pair with several samples: in an outer plate, or on the data repeated along the batch."""

    pair: nn.Module
    nesting: int
    repeat: bool
    rows: int

    def guide(self, block: Batch, s: int, latents: dict[str, _Latent]) -> Trace:
        """The guide's trace with `s` samples of each datum; sites in `latents` take those values."""
        return self._run(self.pair.guide, block, s, latents)

    def model(self, block: Batch, s: int, latents: dict[str, _Latent]) -> Trace:
        """The model's trace at the given latents."""
        return self._run(self.pair.model, block, s, latents)

    def _run(self, function: Any, block: Batch, s: int, latents: dict[str, _Latent]) -> Trace:
        with poutine.trace() as tracer:
            if self.repeat:
                with _Replay({name: latent.folded() for name, latent in latents.items()}):
                    function(*(t if t is None else t.repeat(s, *[1] * (t.dim() - 1)) for t in block))
            else:
                values = _Replay({name: latent.value for name, latent in latents.items()})
                with pyro.plate("_samples", s, dim=-(self.nesting + 1)), values:
                    function(*block)
        tracer.trace.compute_log_prob()
        return tracer.trace

    def log_prob(self, site: Any, s: int) -> Tensor:
        """The site's log-probability without its scale, summed over inner plates: (s, n)."""
        log_prob = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])
        log_prob = self._unfold(log_prob, log_prob.dim() - 1, s)
        return log_prob.flatten(1, -2).sum(1) if log_prob.dim() > 2 else log_prob

    def latent(self, site: Any, s: int) -> _Latent:
        """The site's values."""
        value, event_dim = site["value"], site["fn"].event_dim
        return _Latent(self._unfold(value, value.dim() - 1 - event_dim, s), event_dim)

    def _unfold(self, tensor: Tensor, dim: int, s: int) -> Tensor:
        return tensor.unflatten(dim, (s, -1)).movedim(dim, 0) if self.repeat else tensor


def _draw(sampler: _Sampler, block: Batch, s: int, start: int, batch_size: int) -> Draws:
    """Draws `s` samples of each datum of a block from the guide, and scores them `batch_size` data at a time."""
    latents, log_posterior = _posterior(sampler, sampler.guide(block, s, {}), s)
    likelihoods: list[Tensor] = []
    priors: dict[str, list[Tensor]] = {}
    for first, last in _blocks(check_batch(block), batch_size):
        part = slice(first, last)
        trace = sampler.model(_take(block, part), s, {name: z.data(part) for name, z in latents.items()})
        likelihood, prior = _joint(sampler, trace, s)
        likelihoods.append(likelihood)
        for name, log_prob in prior.items():
            priors.setdefault(name, []).append(log_prob)
    log_prior = {name: torch.cat(parts, 1) for name, parts in priors.items()}
    return Draws(start, torch.cat(likelihoods, 1), log_prior, log_posterior)


def _posterior(sampler: _Sampler, trace: Trace, s: int) -> tuple[dict[str, _Latent], dict[str, Tensor]]:
    """Latent values and log q of the guide's sites; its factors are no density and are left out."""
    sites = {name: site for name, site in sample_sites(trace) if not site["is_observed"]}
    for name, site in sample_sites(trace):
        if isinstance(site["fn"], Unit) and site["fn"].has_rsample:
            warnings.warn(
                f"the guide's factor {name!r} is ignored in log q(z|x); if it is a change of volume, "
                "make it part of the site's density (TransformedDistribution, or Delta's log_density)"
            )
    return (
        {name: sampler.latent(site, s) for name, site in sites.items()},
        {name: sampler.log_prob(site, s) for name, site in sites.items()},
    )


def _joint(sampler: _Sampler, trace: Trace, s: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Log p(x|z), summed over the observed sites, and log p(z) of each latent site: each (s, n)."""
    log_probs = {name: sampler.log_prob(site, s) for name, site in sample_sites(trace)}
    observed = [log_probs.pop(name) for name, site in sample_sites(trace) if site["is_observed"]]
    return torch.stack(observed).sum(0), log_probs


def _choose_sampler(pair: nn.Module, probe: Batch) -> _Sampler:
    """Checks the contract on a few data and finds the form in which the pair takes several samples.

    Not every pair's code broadcasts over an outer plate. The data repeated along the batch always work, but
    encode every datum anew for each sample; the outer plate is used where it gives the same densities at the
    same latents.
    """
    n = check_batch(probe)
    s = 3 if n == 2 else 2  # unequal to n, so that no wrong broadcast passes by its size
    guide_trace = poutine.trace(pair.guide).get_trace(*probe)
    model_trace = poutine.trace(poutine.replay(pair.model, trace=guide_trace)).get_trace(*probe)
    check_sites(model_trace, guide_trace)
    check_data_plate(model_trace, guide_trace, n)
    nesting = max(
        -frame.dim
        for trace in (model_trace, guide_trace)
        for _, site in sample_sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    )
    repeated = _Sampler(pair, nesting, repeat=True, rows=ROW_BLOCK)
    with _Allocations() as allocations:
        latents, log_q = _posterior(repeated, repeated.guide(probe, s, {}), s)
        expected = _total(*_joint(repeated, repeated.model(probe, s, latents), s), log_q)
    rows = max(1, min(ROW_BLOCK, MEMORY_BUDGET * s * n // max(1, allocations.bytes)))
    plate = _Sampler(pair, nesting, repeat=False, rows=rows)
    try:
        _, log_q = _posterior(plate, plate.guide(probe, s, latents), s)
        actual = _total(*_joint(plate, plate.model(probe, s, latents), s), log_q)
    except Exception:  # whatever the user's code raises in a form that it was not written for
        return replace(repeated, rows=rows)
    same = actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-4, atol=1e-3, equal_nan=True)
    return plate if same else replace(repeated, rows=rows)


def _total(log_likelihood: Tensor, log_prior: dict[str, Tensor], log_posterior: dict[str, Tensor]) -> Tensor:
    """Every log-probability of one draw, side by side."""
    return torch.stack([log_likelihood, *log_prior.values(), *log_posterior.values()])


class _Allocations(TorchDispatchMode):
    """Counts the bytes of every tensor that is computed: a bound on the memory that a run needs."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes += tensor.numel() * tensor.element_size()
        return result


def _take(data: Batch, index: slice, device: torch.device | None = None) -> Batch:
    return tuple(t if t is None else t[index].to(device) for t in data)


def _blocks(n: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def check_count(name: str, value: int) -> None:
    """Checks that the argument `name` is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
