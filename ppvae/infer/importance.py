"""Per-datum importance samples z ~ q(z|x) of any pair, and their log-probabilities site by site.

The one mechanism behind the ELBO, log p(x) and validation. For each block of data it yields

    log p(x|z),  log p(z) and log q(z|x) of every latent site,  each of shape (s, n),

without any scale (KL weight), without the factors of the guide, with masks. What is drawn does not depend on
how many data are scored at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppvae.infer.compile import Compiled
from ppvae.infer.sampler import PROBE_DATA, Sampler, choose_sampler
from ppvae.pair import Batch, check_batch, check_pair, device_of
from ppvae.params import LocalParams, module_local

SAMPLE_BLOCK = 256
"""The most samples of one datum that are drawn at once."""

COMPILE_FROM = 1000
"""Blocks from which compiling repays itself."""


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
    pair: nn.Module,
    data: Batch,
    *,
    num_samples: int,
    batch_size: int | None = None,
    seed: int = 0,
    compile: bool | Literal["auto"] = False,
) -> Iterator[Draws]:
    """Draws `num_samples` times from the guide for every datum and scores each draw, in eval mode, no gradients.

    The samples of one datum arrive in consecutive blocks, the data in order; exactly `num_samples` per datum.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), or None.
        num_samples: s, draws per datum.
        batch_size: the most data that the model scores at once; by default what a memory budget allows.
        seed: of all draws; the global random state is neither read nor changed.
        compile: whether to run the blocks as one compiled graph (`ppvae.infer.compile`); "auto" does from
            `COMPILE_FROM` blocks. A datum's first samples always run eagerly, under Pyro's validation.

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
    device = device_of(pair, data)
    params = LocalParams(pair, attach=False)  # one for all blocks: a parameter made at first use is made once
    with evaluating(pair, seed, device=device, params=params):
        sampler = choose_sampler(pair, _take(data, slice(0, PROBE_DATA), device), num_samples)
    samples = _even_parts(num_samples, min(SAMPLE_BLOCK, sampler.rows))
    seeds = torch.Generator().manual_seed(seed)
    blocks = _blocks(n, max(1, sampler.rows // samples[0]))
    long = len(blocks) * len(samples) >= COMPILE_FROM
    draw = _Drawer(sampler, batch_size, compiles=compile is True or (compile == "auto" and long))
    for start, stop in blocks:
        block = _take(data, slice(start, stop), device)
        for i, s in enumerate(samples):
            block_seed = int(torch.randint(2**62, (), generator=seeds))
            # Validation costs time: a datum's first samples are enough to find a value off the support.
            with evaluating(pair, block_seed, device=device, params=params), validation(i == 0):
                draws = draw(block, s, start, eagerly=i == 0)
            yield draws


@contextmanager
def evaluating(
    pair: nn.Module,
    seed: int,
    *,
    device: torch.device | None = None,
    params: LocalParams | None = None,
    attach: bool = False,
) -> Iterator[None]:
    """Runs `pair` in eval mode without gradients, its parameters its own, its randomness that of `seed`.

    Every module that runs inside is in eval mode, also one that plain functions use and the pair does not own.
    Restores the modules' modes and the global random state.

    Args:
        pair: any model/guide pair.
        seed: of the CPU's and the device's generators.
        device: where the pair runs; by default that of its parameters.
        params: where its Pyro parameters live; by default its own, and a new one stays with `attach`.
        attach: whether parameters created inside stay with the pair.
    """
    device = device or device_of(pair)
    training = {module: module.training for module in pair.modules()}

    def freeze(module: nn.Module, args: Any) -> None:
        if module.training:
            training.setdefault(module, True)
            module.training = False

    foreign = register_module_forward_pre_hook(freeze)
    pair.eval()
    try:
        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.no_grad(),
            module_local(),
            params or LocalParams(pair, attach=attach),
        ):
            # torch.manual_seed would seed every device, and not all of them are put back.
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.default_generators[device.index or 0].manual_seed(seed)
            yield
    finally:
        foreign.remove()
        for module, mode in training.items():
            module.training = mode


@contextmanager
def validation(on: bool) -> Iterator[None]:
    """Pyro's validation: as the user has set it where `on`, else off; restored on leaving."""
    if on:
        yield
        return
    with pyro.validation_enabled(False):
        yield


class _Drawer:
    """Draws block after block: compiled where that repays itself, in the form of the pair that works."""

    def __init__(self, sampler: Sampler, batch_size: int | None, *, compiles: bool) -> None:
        self._sampler = sampler
        self._batch_size = batch_size
        self._compiled = Compiled(self._compute, [sampler.pair], guarded=lambda: self._sampler) if compiles else None

    def __call__(self, block: Batch, s: int, start: int, *, eagerly: bool) -> Draws:
        """Draws `s` samples of each datum of a block, whose first datum has the index `start`."""
        if self._compiled is None or eagerly:
            return self._draw_surely(block, s, start)
        outputs, (priors, posteriors) = self._compiled((s, *block))
        likelihood, *rest = (tensor.clone() if tensor.is_cuda else tensor for tensor in outputs)
        log_prior = dict(zip(priors, rest, strict=False))
        return Draws(start, likelihood, log_prior, dict(zip(posteriors, rest[len(priors) :], strict=True)))

    def _compute(self, args: tuple[Any, ...]) -> tuple[list[Tensor], Any]:
        """A block's draws as a computation: its log-probabilities, and the names of their sites."""
        s, *block = args
        draws = self._draw_surely(tuple(block), s, 0)
        outputs = [draws.log_likelihood, *draws.log_prior.values(), *draws.log_posterior.values()]
        return outputs, (list(draws.log_prior), list(draws.log_posterior))

    def _draw_surely(self, block: Batch, s: int, start: int) -> Draws:
        """Draws; an outer plate may fail on some size that the trial runs had not."""
        batch_size = self._batch_size or check_batch(block)
        try:
            return _draw(self._sampler, block, s, start, batch_size)
        except Exception:
            if self._sampler.plate_dim is None:
                raise
        self._sampler = replace(self._sampler, plate_dim=None)
        return _draw(self._sampler, block, s, start, batch_size)


def _draw(sampler: Sampler, block: Batch, s: int, start: int, batch_size: int) -> Draws:
    """Draws `s` samples of each datum of a block from the guide, and scores them `batch_size` data at a time."""
    latents, log_posterior = sampler.posterior(sampler.guide(block, s, {}), s)
    likelihoods: list[Tensor] = []
    priors: list[dict[str, Tensor]] = []
    for first, last in _blocks(check_batch(block), batch_size):
        part = slice(first, last)
        trace = sampler.model(_take(block, part), s, {name: z.data(part) for name, z in latents.items()})
        likelihood, prior = sampler.joint(trace, s)
        likelihoods.append(likelihood)
        priors.append(prior)
    log_prior = {name: torch.cat([prior[name] for prior in priors], 1) for name in priors[0]}
    return Draws(start, torch.cat(likelihoods, 1), log_prior, log_posterior)


def _take(data: Batch, index: slice, device: torch.device | None = None) -> Batch:
    return tuple(t if t is None else t[index].to(device) for t in data)


def _blocks(n: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _even_parts(total: int, size: int) -> list[int]:
    """`total` in as few parts of at most `size` as can be, as equal as can be."""
    parts = -(-total // size)
    return [total // parts + (i < total % parts) for i in range(parts)]


def check_count(name: str, value: int) -> None:
    """Checks that the argument `name` is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
