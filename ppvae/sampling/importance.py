"""Per-datum importance samples z ~ q(z|x) of any pair, and their log-probabilities site by site.

The one mechanism behind the ELBO, log p(x) and validation. For each block of data it yields

    log p(x|z),  log p(z) and log q(z|x) of every latent site,  each of shape (e, s, n),

without any scale (KL weight), without the factors of the guide, with masks, and −inf outside the support of a prior.
Discrete latents that are marked for enumeration are not drawn but take each of their values in turn. What is drawn does
not depend on how many data are scored at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ppvae._validate import check_autocast, check_count, check_memory, check_seed, names_of
from ppvae.compile.compiled import Compiled
from ppvae.compile.policy import Compile, check_compile, repays
from ppvae.compile.verification import Label
from ppvae.pair import Batch, blocks, check_batch, check_data, check_pair, device_of, take
from ppvae.params import LocalParams
from ppvae.processes import dealt, world
from ppvae.rng import forked_rng, get_rng, set_rng
from ppvae.sampling.agreement import Agreement, check_alike
from ppvae.sampling.block_sizes import block_sizes
from ppvae.sampling.eval_mode import evaluating, naming_nonfinite, validation
from ppvae.sampling.sampler import PROBE_DATA, Sampler, Values, choose_sampler
from ppvae.traces import latent_of


@dataclass(frozen=True)
class Draws:
    """Samples of a block of data and their unscaled log-probabilities, in nats.

    Discrete latents y that the guide enumerates are not drawn: there is one row for each of their e joint values,
    with the other latents z drawn given it. So are those that the model enumerates; where there are none, e = 1.

    Attributes:
        start: index of the block's first datum.
        log_likelihood: Σ log p over the observed sites, shape (e, s, n).
        log_prior: log p of each latent site, (e, s, n).
        log_posterior: log q of each guide site, (e, s, n); auxiliary sites of the guide included.
        enumerated: the guide's sites that are summed over.
        marginalized: the sites that only the model has and whose values are tried each; they vary fastest in e. Long
            chains are summed over within the log-likelihood.
        num_marginalized: how many joint values these have.
        outside: which draws lie outside the support of a latent's prior, (e, s, n): their log p is −inf, and the
            likelihood that of another value; None where no prior has bounds.
        codes: the discrete latents to which the guide gives one value, so that log w is a bound.

    Example:
        >>> import torch
        >>> two = torch.tensor([[[-1.0], [-2.0]]])  # two samples of one datum
        >>> draws = Draws(0, log_likelihood=two, log_prior={"z": two}, log_posterior={"z": two / 2})
        >>> draws.log_weight().T, draws.kl()["z"].T
        (tensor([[-1.5000, -3.0000]]), tensor([[0.5000, 1.0000]]))
    """

    start: int
    log_likelihood: Tensor
    log_prior: dict[str, Tensor]
    log_posterior: dict[str, Tensor]
    enumerated: tuple[str, ...] = ()
    marginalized: tuple[str, ...] = ()
    num_marginalized: int = 1
    outside: Tensor | None = None
    codes: tuple[str, ...] = ()

    def terms(self) -> Tensor:
        """Every log-probability, side by side: (sites, e, s, n)."""
        return torch.stack([self.log_likelihood, *self.log_prior.values(), *self.log_posterior.values()])

    def log_ratio(self) -> Tensor:
        """Log p(x, y, z) − log q(z|x, y) at each value of y, shape (e, s, n)."""
        drawn = [value for site, value in self.log_posterior.items() if site not in self.enumerated]
        return self.log_likelihood + sum(self.log_prior.values()) - sum(drawn)

    def log_weight(self) -> Tensor:
        """Log w = log Σ_y p(x, y, z) / q(z|x, y), shape (s, n): the mean of w over s estimates p(x)."""
        ratio = self.log_ratio()
        return ratio[0] if len(ratio) == 1 else ratio.logsumexp(0)

    def elbo(self) -> Tensor:
        """Σ_y q(y|x) (log p(x, y, z) − log q(z|x, y) − log q(y|x)), (s, n): its mean over s estimates the ELBO."""
        log_q = self._log_q()
        return self.log_ratio()[0] if log_q is None else self._mean(self.log_ratio() - log_q)

    def reconstruction(self) -> Tensor:
        """E[log p(x|y, z)] over the enumerated y, (s, n); NaN for a z that the prior does not allow."""
        if self.outside is None:
            return self._mean(self.log_likelihood)
        return self._mean(torch.where(self.outside, torch.nan, self.log_likelihood))

    def share_outside(self) -> Tensor:
        """Which draws have weight zero because they lie outside the support, or the data do, at every y: (s, n)."""
        impossible = self.log_likelihood == -torch.inf
        return (impossible if self.outside is None else impossible | self.outside).double().amin(0)

    def kl(self) -> dict[str, Tensor]:
        """Log q − log p of each site, (s, n): its mean over s estimates KL(q ‖ p) of that site."""
        zero = torch.zeros_like(self.log_likelihood)
        terms = {z: -log_p for z, log_p in self.log_prior.items()}
        for site, log_q in self.log_posterior.items():
            z = latent_of(site, self.log_prior)
            terms[z] = terms.get(z, zero) + log_q
        if self.marginalized:  # their q is p(y|x, z), which the sum over them makes exact
            joint = self._log_marginalized()
            for name in self.marginalized:
                joint = joint + terms.pop(name)
            terms[",".join(self.marginalized)] = joint
        return {name: self._mean(value) for name, value in terms.items()}

    def _log_q(self) -> Tensor | None:
        """The log-probability of each joint value, (e, s, n); None where nothing is summed over."""
        if not self.enumerated and not self.marginalized:
            return None
        log_q = torch.zeros_like(self.log_likelihood)
        for name in self.enumerated:
            log_q = log_q + self.log_posterior[name]
        return log_q + self._log_marginalized() if self.marginalized else log_q

    def _log_marginalized(self) -> Tensor:
        """Log p(y|x, z) of the values of the sites that only the model has, (e, s, n)."""
        grouped = self.log_ratio().unflatten(0, (-1, self.num_marginalized))
        log_p = grouped.log_softmax(1)
        impossible = grouped.amax(1, keepdim=True) == -torch.inf  # x is so at every value: count them alike
        return torch.where(impossible, -math.log(self.num_marginalized), log_p).flatten(0, 1)

    def _mean(self, values: Tensor) -> Tensor:
        """The mean over the summed values, (s, n); values of probability zero do not count, not even infinite ones."""
        log_q = self._log_q()
        if log_q is None:
            return values[0]
        q = log_q.exp()
        return torch.where(q == 0, 0.0, q * values).sum(0)


@dataclass(frozen=True)
class _Found:
    """What a block of draws has come to.

    Attributes:
        log_likelihood: log p(x|z), (s, n).
        log_prior: log p of each latent site, and log r of auxiliary ones, (s, n).
        log_posterior: log q of each site, (s, n).
        outside: which draws lie outside the prior's support, (s, n); empty where it has no bounds.
        masks: by latent, the data of which other elements count in the model than in the guide, (1, n).
        given: by site to condition on, its least and greatest log-density, (2, n).
    """

    log_likelihood: Tensor
    log_prior: dict[str, Tensor]
    log_posterior: dict[str, Tensor]
    outside: list[Tensor]
    masks: dict[str, Tensor]
    given: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        """All of it, one after the other."""
        named = [tensor for of in (self.log_prior, self.log_posterior) for tensor in of.values()]
        checks = [tensor for of in (self.masks, self.given) for tensor in of.values()]
        return [self.log_likelihood, *named, *self.outside, *checks]

    def layout(self) -> Layout:
        """What the tensors are."""
        return list(self.log_prior), list(self.log_posterior), len(self.outside), list(self.masks), list(self.given)

    @classmethod
    def of(cls, tensors: Sequence[Tensor], layout: Layout) -> _Found:
        """What `tensors` and `layout` have come from."""
        priors, posteriors, num_outside, masks, given = layout
        rest = iter(tensors)
        likelihood = next(rest)
        log_prior, log_posterior = ({name: next(rest) for name in names} for names in (priors, posteriors))
        outside = [next(rest) for _ in range(num_outside)]
        return cls(
            likelihood,
            log_prior,
            log_posterior,
            outside,
            {name: next(rest) for name in masks},
            {name: next(rest) for name in given},
        )


Layout = tuple[list[str], list[str], int, list[str], list[str]]
"""Names of the sites of log p and log q, whether draws may lie outside, and names of what is compared."""

TOGETHER = 8
"""Blocks that are drawn each time that the pair is put into eval mode, which takes time of its own."""

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
        coarse = sampler.autocast is not None
        self._compiled = Compiled(self._compute, [sampler.pair], guarded=self._form, labels=_labels, autocast=coarse)

    @classmethod
    def of(cls, sampler: Sampler, batch_size: int | None, *, kept: bool) -> Drawer:
        """A drawer for these blocks: where `kept`, the pair's last one with its graphs.

        They hold what the pair's Python did then: each is used again only where it still does the same.
        """
        drawer = vars(sampler.pair).pop(_KEPT, None) if kept else None  # nobody else's meanwhile
        # A shallow copy of a pair has the graphs of the first.
        if (
            not isinstance(drawer, Drawer)
            or (drawer._sampler.pair, drawer._sampler.autocast) != (sampler.pair, sampler.autocast)
            or not drawer._compiled.num_graphs
        ):
            return cls(sampler, batch_size)
        drawer._compiled.distrust()
        drawer._sampler, drawer._batch_size = sampler, batch_size
        return drawer

    def keep(self) -> None:
        """Leaves its graphs with the pair. They are no part of its state: neither saved nor copied."""
        if self._compiled.num_graphs:
            object.__setattr__(self._sampler.pair, _KEPT, self)

    def __reduce__(self) -> Any:
        return type(None), ()

    def __call__(self, block: Batch, s: int, agreement: Agreement, *, eagerly: bool) -> Draws:
        """Draws `s` samples of each datum of a block, and adds to what was found in it."""
        enumeration = self._sampler.enumeration
        compute = self._compute if eagerly else self._compiled
        rows = []
        device = next(t.device for t in block if t is not None)
        rng = get_rng(device)
        for values in enumeration.values:
            set_rng(rng, device)  # what does not depend on y is the same draw for every y, so that Σ_y q(y|z) = 1
            outputs, layout = compute((s, tuple(values.values()), block))
            rows.append(outputs)
            found = _Found.of(outputs, layout)
            agreement.add(found.masks, found.given)
        found = _Found.of([torch.stack(tensors) for tensors in zip(*rows, strict=True)], layout)
        return Draws(
            agreement.start,
            found.log_likelihood,
            found.log_prior,
            found.log_posterior,
            enumeration.guide,
            enumeration.tried,
            enumeration.num_model,
            found.outside[0] if found.outside else None,
            self._sampler.density.codes,
        )

    def _form(self) -> Any:
        sampler = self._sampler
        listed = (sampler.enumeration.num_values, sampler.density.summed.num_values)
        form = (sampler.plate_dim, sampler.given, sampler.moved, self._batch_size)
        return *form, *(tuple(of.items()) for of in listed)

    def _compute(self, args: tuple[Any, ...]) -> tuple[Sequence[Tensor], Any]:
        """A block's log-probabilities at one joint value of the enumerated sites, and the names of their sites."""
        s, values, block = args
        fixed = dict(zip(self._sampler.enumeration.event_dims, values, strict=True))
        found = self._draw_surely(block, s, fixed)
        return found.tensors(), found.layout()

    def _draw_surely(self, block: Batch, s: int, fixed: Values) -> _Found:
        """Draws; an outer plate may fail on some size that the trial runs had not."""
        batch_size = self._batch_size or check_batch(block)
        try:
            return _draw(self._sampler, block, s, fixed, batch_size)
        except Exception:
            if self._sampler.plate_dim is None:
                raise
        self._sampler = replace(self._sampler, plate_dim=None)
        return _draw(self._sampler, block, s, fixed, batch_size)


def _labels(layout: Layout) -> list[Label]:
    """What the outputs of a block are called."""
    priors, posteriors, num_outside, masks, given = layout
    log_probs = [("log p of", "the data"), *(("log p of", z) for z in priors), *(("log q of", z) for z in posteriors)]
    checks = [*(("the mask of", z) for z in masks), *(("log p of", x) for x in given)]
    return [*log_probs, *[("which draws lie outside", "the support")] * num_outside, *checks]


def _draw(sampler: Sampler, block: Batch, s: int, fixed: Values, batch_size: int) -> _Found:
    """Draws `s` samples of each datum of a block from the guide, and scores them `batch_size` data at a time."""
    guide_trace = sampler.guide(block, s, {}, fixed)
    latents, log_posterior = sampler.posterior(guide_trace, s)
    parts: list[_Found] = []
    for first, last in blocks(check_batch(block), batch_size):
        part = slice(first, last)
        trace = sampler.model(take(block, part), s, {name: z.data(part) for name, z in latents.items()}, fixed)
        outside = sampler.outside(trace, s)
        masks = sampler.unequal_masks(trace, guide_trace, s, part)
        found = [] if outside is None else [outside]
        parts.append(_Found(*sampler.joint(trace, s), {}, found, masks, sampler.given_range(trace, s)))
    whole = _joined(parts)
    log_prior = whole.log_prior | sampler.log_reverse(block, s, latents, fixed)
    log_q = sampler.log_q(block, s, latents, log_posterior, fixed)
    return replace(whole, log_prior=log_prior, log_posterior=log_q)


def _joined(parts: Sequence[_Found]) -> _Found:
    """What was found in consecutive parts of a block; a part of short series may have fewer sites, which count zero."""

    def joined(kind: str) -> dict[str, Tensor]:
        every = [getattr(part, kind) for part in parts]
        like = {name: found for of in every for name, found in of.items()}
        missing = {name: torch.zeros_like(found[:, :1]) for name, found in like.items()}

        def of_part(part: _Found, of: dict[str, Tensor], name: str) -> Tensor:
            return of[name] if name in of else missing[name].expand(-1, part.log_likelihood.shape[1])

        return {name: torch.cat([of_part(*both, name) for both in zip(parts, every, strict=True)], 1) for name in like}

    outside = [part.outside[0] if part.outside else torch.zeros_like(part.log_likelihood).bool() for part in parts]
    return _Found(
        torch.cat([part.log_likelihood for part in parts], 1),
        joined("log_prior"),
        joined("log_posterior"),
        [torch.cat(outside, 1)] if any(part.outside for part in parts) else [],
        joined("masks"),
        joined("given"),
    )


SAVED = 10.0
"""Milliseconds that compiling saves at a block, roughly: it repays itself in 1,000 blocks."""


def importance_draws(
    pair: nn.Module,
    data: Batch,
    *,
    num_samples: int,
    batch_size: int | None = None,
    seed: int = 0,
    compile: Compile = False,
    given: Sequence[str] = (),
    autocast: torch.dtype | None = None,
    params: LocalParams | None = None,
) -> Iterator[Draws]:
    """Draws `num_samples` times from the guide for every datum and scores each draw, in eval mode, no gradients.

    The samples of one datum arrive in consecutive blocks, the data in order; exactly `num_samples` per datum.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), or None.
        num_samples: s, draws per datum.
        batch_size: the most data that the model scores at once; by default what a memory budget allows.
        seed: of all draws; the global random state is neither read nor changed. Of many processes each draws some of
            the blocks, and all have the draws of one.
        compile: whether to run the blocks as one compiled graph (`ppvae.compile.compiled`); "auto" does from
            1,000 blocks. A datum's first samples always run eagerly, under Pyro's validation.
        given: observed sites to condition on: their density is left out.
        autocast: dtype of products in the pair's code, e.g. `torch.bfloat16`; None for its own.
        params: where Pyro parameters that are made at first use live; by default they end with the draws.

    Yields:
        Blocks of draws, on the pair's device.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, naming the argument or site.

    Example:
        The ELBO of each datum:

        >>> import torch
        >>> from ppvae.models import PPCA
        >>> elbo = torch.zeros(500)
        >>> for draws in importance_draws(PPCA(8, 2), (torch.randn(500, 8),), num_samples=30):
        ...     of_each = draws.elbo().sum(0) / 30
        ...     elbo[draws.start : draws.start + len(of_each)] += of_each
    """
    check_pair(pair)
    n = check_data(data)
    check_count("num_samples", num_samples)
    check_memory("num_samples", num_samples, 8.0 * num_samples)  # the least that the weights of one datum take
    if batch_size is not None:
        check_count("batch_size", batch_size)
    check_seed(seed)
    check_compile(compile)
    check_autocast(autocast)
    device, given = device_of(pair, data), names_of(given)
    params = params or LocalParams(pair, attach=False)  # one for all blocks: what is made at first use is made once
    with evaluating(pair, seed, device=device, params=params), naming_nonfinite(data):
        sampler = choose_sampler(pair, take(data, slice(0, PROBE_DATA), device), num_samples, given)
    sampler.density.check()
    sampler = replace(sampler, autocast=autocast)
    size, samples = block_sizes(n, num_samples, rows=sampler.rows)
    data_blocks = blocks(n, size)
    generator = torch.Generator().manual_seed(seed)
    runs = len(samples) * len(sampler.enumeration.values)
    compiles = len(samples) > 1 and repays(compile, len(data_blocks) * runs, saved=SAVED)
    compiles_last = compiles and (n % size == 0 or repays(compile, runs, saved=SAVED))  # which takes its own graph
    draw = Drawer.of(sampler, batch_size, kept=compiles and not params.forgets)

    def of_block(place: tuple[int, int], seeds: Sequence[int]) -> Iterator[Draws]:
        block = take(data, slice(*place), device)
        agreement = Agreement(place[0])

        def drawn(i: int) -> Draws:
            eagerly = i == 0 or not (compiles_last if place[1] == n else compiles)
            # Validation costs time: a datum's first samples are enough to find a value off the support.
            with forked_rng(device, seeds[i]), validation(i == 0):
                draws = draw(block, samples[i], agreement, eagerly=eagerly)
                if given and num_samples == 1:  # one draw alone does not show what depends on it
                    draw(block, 1, agreement, eagerly=True)
            return draws

        for first, last in blocks(len(samples), TOGETHER):
            with evaluating(pair, seed, device=device, params=params), naming_nonfinite(data):
                found = [drawn(i) for i in range(first, last)]
            yield from found
        agreement.check()

    seeded = ((place, [int(torch.randint(2**62, (), generator=generator)) for _ in samples]) for place in data_blocks)
    if world() == 1 or len(data_blocks) == 1:
        for place, seeds in seeded:
            yield from of_block(place, seeds)
    else:
        check_alike(pair, data, (num_samples, batch_size, seed, given, sampler.rows))
        for of_one in dealt(list(seeded), lambda block: list(of_block(*block)), device=device):
            yield from of_one
    if compiles and not params.forgets:
        draw.keep()
