"""Drawing and scoring one block of data after another, compiled where that repays itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppvae.infer.compile import Compiled
from ppvae.infer.draws import Draws
from ppvae.infer.sampler import Sampler, Values
from ppvae.infer.state import get_rng, set_rng
from ppvae.pair import Batch, check_batch

LogProbs = tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]
"""Log p(x|z), and log p and log q of each latent site, each (s, n)."""

_KEPT = "_ppvae_drawer"
"""The attribute of a pair that keeps its compiled graphs for the next estimate."""


class Drawer:
    """Draws block after block, in the form of the pair that works.

    Args:
        sampler: how the pair is run.
        batch_size: the most data that the model scores at once; None for all of a block.
    """

    def __init__(self, sampler: Sampler, batch_size: int | None) -> None:
        self._sampler = sampler
        self._batch_size = batch_size
        self._forgot = False
        self._compiled = Compiled(self._compute, [sampler.pair], guarded=self._form)

    @classmethod
    def of(cls, sampler: Sampler, batch_size: int | None, *, kept: bool) -> Drawer:
        """A drawer for these blocks: where `kept`, the pair's last one with its graphs.

        They hold what the pair's Python did then: each is used again only where it still does the same.
        """
        drawer = vars(sampler.pair).pop(_KEPT, None) if kept else None  # nobody else's meanwhile
        # A shallow copy of a pair has the graphs of the first.
        if (
            not isinstance(drawer, Drawer)
            or drawer._sampler.pair is not sampler.pair
            or not drawer._compiled.num_graphs
        ):
            return cls(sampler, batch_size)
        drawer._compiled.distrust()
        drawer._sampler, drawer._batch_size, drawer._forgot = sampler, batch_size, False
        return drawer

    def keep(self) -> None:
        """Leaves the graphs with the pair. They are no part of its state: neither saved nor copied."""
        object.__setattr__(self._sampler.pair, _KEPT, self)

    def __reduce__(self) -> Any:
        return type(None), ()

    def __call__(self, block: Batch, s: int, start: int, *, eagerly: bool) -> Draws:
        """Draws `s` samples of each datum of a block, whose first datum has the index `start`."""
        enumeration = self._sampler.enumeration
        compute = self._compute if eagerly else self._compiled
        rows = []
        device = next(t.device for t in block if t is not None)
        rng = get_rng(device)
        for values in enumeration.values:
            set_rng(rng, device)  # what does not depend on y is the same draw for every y, so that Σ_y q(y|z) = 1
            outputs, (priors, posteriors) = compute((s, tuple(values.values()), block))
            rows.append([tensor.clone() if tensor.is_cuda else tensor for tensor in outputs])
        likelihood, *rest = (torch.stack(tensors) for tensors in zip(*rows, strict=True))
        return Draws(
            start,
            likelihood,
            dict(zip(priors, rest, strict=False)),
            dict(zip(posteriors, rest[len(priors) :], strict=True)),
            enumeration.guide,
            enumeration.model,
            enumeration.num_model,
        )

    def agrees(self, eager: Draws, compiled: Draws) -> bool:
        """Whether a block came out the same both ways, with one seed; the graphs are forgotten where it did not."""
        a, b = eager.terms(), compiled.terms()
        if a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-2, equal_nan=True):
            return True
        if self._forgot:
            raise RuntimeError("compiled draws differ from the eager ones: please report the pair; use compile=False")
        self._forgot = True
        self._compiled = Compiled(self._compute, [self._sampler.pair], guarded=self._form)
        return False

    def _form(self) -> Any:
        sampler = self._sampler
        return sampler.plate_dim, sampler.given, tuple(sampler.enumeration.event_dims.items()), self._batch_size

    def _compute(self, args: tuple[Any, ...]) -> tuple[Sequence[Tensor], Any]:
        """A block's log-probabilities at one joint value of the enumerated sites, and the names of their sites."""
        s, values, block = args
        fixed = dict(zip(self._sampler.enumeration.event_dims, values, strict=True))
        likelihood, log_prior, log_posterior = self._draw_surely(block, s, fixed)
        outputs = [likelihood, *log_prior.values(), *log_posterior.values()]
        return outputs, (list(log_prior), list(log_posterior))

    def _draw_surely(self, block: Batch, s: int, fixed: Values) -> LogProbs:
        """Draws; an outer plate may fail on some size that the trial runs had not."""
        batch_size = self._batch_size or check_batch(block)
        try:
            return _draw(self._sampler, block, s, fixed, batch_size)
        except Exception:
            if self._sampler.plate_dim is None:
                raise
        self._sampler = replace(self._sampler, plate_dim=None)
        return _draw(self._sampler, block, s, fixed, batch_size)


def _draw(sampler: Sampler, block: Batch, s: int, fixed: Values, batch_size: int) -> LogProbs:
    """Draws `s` samples of each datum of a block from the guide, and scores them `batch_size` data at a time."""
    latents, log_posterior = sampler.posterior(sampler.guide(block, s, {}, fixed), s)
    likelihoods: list[Tensor] = []
    priors: list[dict[str, Tensor]] = []
    for first, last in blocks(check_batch(block), batch_size):
        part = slice(first, last)
        trace = sampler.model(take(block, part), s, {name: z.data(part) for name, z in latents.items()}, fixed)
        likelihood, prior = sampler.joint(trace, s)
        likelihoods.append(likelihood)
        priors.append(prior)
    log_prior = {name: torch.cat([prior[name] for prior in priors], 1) for name in priors[0]}
    return torch.cat(likelihoods, 1), log_prior, log_posterior


def take(data: Batch, index: slice, device: torch.device | None = None) -> Batch:
    """Some of the data, on `device`."""
    return tuple(t if t is None else t[index].to(device) for t in data)


def blocks(n: int, size: int) -> list[tuple[int, int]]:
    """The (start, stop) of consecutive blocks of at most `size` of n data."""
    return [(start, min(start + size, n)) for start in range(0, n, size)]
