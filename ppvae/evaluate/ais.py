"""The marginal likelihood log p(x), per datum, by annealed importance sampling.

Chains start at draws z_0 from the guide (or the prior), follow π_β(z) ∝ q(z|x)^(1−β) p(x, z)^β while β rises from 0
to 1, by Hamiltonian Monte Carlo, and gather (Neal 2001, "Annealed importance sampling", arXiv physics/9803008)

    log w = Σ_t (β_t − β_{t−1}) (log p(x, z_{t−1}) − log q(z_{t−1}|x)),     log p(x) ≈ log (1/s) Σ_i w_i.

One temperature is importance sampling; each further one lets the draws move towards the posterior, so that a guide that
misses it no longer spoils the estimate (Wu et al. 2017, "On the quantitative analysis of decoder-based generative
models", 1611.04273). Data that the model itself has drawn come with an exact draw from their posterior: chains that
start there and go back to q give an upper bound (Grosse et al. 2015, "Sandwiching the marginal likelihood using
bidirectional Monte Carlo", 1511.02543).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppvae._validate import check_count, check_flag
from ppvae.compile.policy import Compile, check_compile, repays
from ppvae.evaluate.estimates import (
    Diagnostics,
    LogMarginal,
    PerDatum,
    errors_in_words,
    ess_in_words,
    outside_in_words,
    standard_error,
)
from ppvae.evaluate.estimator import Estimator, EvaluationOptions
from ppvae.evaluate.sites import num_observed
from ppvae.pair import Batch, blocks, take
from ppvae.processes import each_seeded, is_first
from ppvae.result import Result
from ppvae.sampling.ais import Annealing, Chains
from ppvae.sampling.annealed_path import GeometricPath, Start
from ppvae.sampling.posterior_draws import PosteriorSampler, posterior_sampler, simulate

SAVED = 2.0
"""Milliseconds that compiling saves at a gradient, roughly: it repays itself in 5,000 of them."""


@dataclass(frozen=True)
class AnnealedDiagnostics(Diagnostics):
    """The evidence for an estimate by annealed importance sampling, whose draws are chains.

    Attributes:
        acceptance: mean probability with which a move was accepted, (n,); NaN for a single temperature.
        num_chains: per datum.
        num_temperatures: steps from the start to the posterior.
        share_outside: of the chains, how many began outside the support of the prior and have weight zero, (n,); None
            is not known.
    """

    acceptance: Tensor
    num_chains: int
    num_temperatures: int
    share_outside: Tensor | None = None

    def in_words(self, estimate: LogMarginal) -> str:
        """How many chains counted, how often they moved, and how sure each datum is."""
        outside = "" if self.share_outside is None else outside_in_words(self.share_outside)
        return (
            f"{self.num_chains} chains of {self.num_temperatures} temperatures per datum{outside}, "
            f"{ess_in_words(estimate)}; "
            f"moves accepted: mean {float(self.acceptance.mean()):.2f}, least {float(self.acceptance.min()):.2f}; "
            f"{errors_in_words(estimate)}"
        )

    def settings(self) -> dict[str, int | str]:
        """The number of chains and of their temperatures."""
        return {"num_samples": self.num_chains, "num_temperatures": self.num_temperatures, "draws": "chains"}

    def figures(self) -> dict[str, Any]:
        """`acceptance` ("average", "min")."""
        return {"acceptance": {"average": float(self.acceptance.mean()), "min": float(self.acceptance.min())}}

    def of_datum(self) -> dict[str, PerDatum]:
        """`acceptance`, and `share_outside` where it is known."""
        known = {} if self.share_outside is None else {"share_outside": self.share_outside}
        return {"acceptance": self.acceptance, **known}

    def warning(self) -> None:
        """None: the tail of so few weights says nothing. `bidirectional` shows what the settings are worth."""


@dataclass(frozen=True)
class Annealed(Estimator):
    """Annealed importance sampling, with `AnnealedDiagnostics`; latents must be continuous, or are summed over.

    The mean of the weights has the expectation p(x), whatever the settings, and so `values` are a lower bound in
    expectation. The step sizes adapt to an acceptance of 0.8, for each datum while the chains run, but by four further
    chains that count for nothing else: a chain that chose its own steps would bias its weight. Scales and the guide's
    factors are ignored, masks count. A chain costs `num_temperatures` × `num_leapfrog` gradients of log p(x, z) and
    log q(z|x); of two settings of one cost that with more temperatures and fewer leapfrog steps is mostly the better.

    Args:
        num_chains: s, independent chains per datum.
        num_temperatures: steps from the start to the posterior; with one, this is importance sampling.
        num_leapfrog: gradients in each move.
        start: "guide"; "prior" for chains that owe nothing to the guide and need more temperatures for it; "adaptive"
            for proposals fitted to each datum (see `Adaptive`), from which fewer do.

    Raises:
        ValueError: where one of them is out of range.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.evaluate import Annealed
        >>> from ppvae.models import PPCA
        >>> method = Annealed(num_chains=4, num_temperatures=5)
        >>> ppvae.log_marginal(PPCA(8, 2), torch.randn(10, 8), method=method).values.shape
        torch.Size([10])
    """

    num_chains: int = 16
    num_temperatures: int = 1000
    num_leapfrog: int = 5
    start: Start = "guide"

    def __post_init__(self) -> None:
        self.annealing()
        if self.start not in ("guide", "prior", "adaptive"):
            raise ValueError(f'start must be "guide", "prior" or "adaptive", got {self.start!r}')

    @classmethod
    def from_num_samples(cls, num_samples: int) -> Self:
        """So many chains."""
        return cls(num_chains=num_samples)

    def annealing(self) -> Annealing:
        """How its chains follow a path."""
        return Annealing(self.num_chains, self.num_temperatures, self.num_leapfrog)

    def estimate(self, pair: nn.Module, data: Batch, options: EvaluationOptions) -> LogMarginal:
        """Estimates log p(x) of each datum, see `ppvae.log_marginal`.

        Raises:
            TypeError: where an argument is of the wrong kind.
            ValueError: where the pair or the data break the contract, a latent is discrete and not marked for
                enumeration, the guide cannot score foreign latents, or a weight is NaN or infinite, naming the
                argument, the site or the datum.
        """
        annealing = self.annealing()
        with (
            options.posterior_sampler(pair, data) as c,
            _bar(len(c), annealing, 1, options.progress) as bar,
        ):
            parts = _parts(c, annealing, options.batch_size)
            path = GeometricPath(c, self.start, compile=_compiles(options.compile, annealing, len(parts)))

            def forward(place: tuple[int, PosteriorSampler]) -> Chains:
                return annealing.forward(path.fitted(place[1]), place[1], first=place[0], tick=bar.update)

            chains = each_seeded(parts, forward, device=c.device)
        return _estimate(chains, annealing, num_observed(pair, data, options.given))


@dataclass(frozen=True, repr=False)
class BidirectionalBounds(Result):
    """Two estimates of log p(x) of data that the model has drawn, one from below and one from above.

    Attributes:
        lower: log p̂(x) by chains from the start to the posterior; E[lower] ≤ log p(x).
        upper: by chains from the draw of the posterior that the data came with, back to the start: for x and z drawn
            from the model, E[upper] ≥ E[log p(x)]. All chains of a datum begin at that one draw, and `std_error` is
            their spread alone; that of the draw shows over the data.
        method: the chains, the same each way.
        data: the pair's arguments with the draws in the place of what was observed, on the pair's device.
    """

    lower: LogMarginal
    upper: LogMarginal
    method: Annealed
    data: tuple[Any, ...]

    def gap(self) -> float:
        """The mean of upper − lower over the data, nats: no less than the mean error of each, in expectation."""
        return float((self.upper.values - self.lower.values).mean())

    def gap_std_error(self) -> float:
        """Standard error of the mean gap over the data, nats."""
        return standard_error(self.upper.values - self.lower.values)

    def summary(self) -> str:
        """One sentence for a person: the bounds and the gap between them."""
        return (
            f"on {len(self.lower.values)} data drawn from the model {self.lower.mean():.3f} ≤ mean log p(x) ≤ "
            f"{self.upper.mean():.3f} nats, a gap of {self.gap():.3f} ± {self.gap_std_error():.3f}, by "
            f"{self.method.num_chains} chains of {self.method.num_temperatures} temperatures each way"
        )


def bidirectional(
    pair: nn.Module,
    *template: Any,
    method: Annealed | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    compile: Compile = "auto",
    progress: bool = False,
) -> BidirectionalBounds:
    """Bounds log p(x) of data that the model draws itself, from both sides: bidirectional Monte Carlo.

    The lower bound is `log_marginal`'s by this method. For the upper one chains start at the z that x was drawn from,
    an exact draw from p(z|x), and go the same way back, with the steps that the first ones found: E[1/w] = 1/p(x).
    Where the gap between them is small, the settings are good enough for data like the model's; where the data that
    matter look different, that is evidence about them and no proof.

    Args:
        pair: any model/guide pair, of which the model can be simulated (`ppvae.sampling.posterior_draws.simulate`).
        template: its arguments, tensors of shape (n, ...); what is observed is drawn anew, once for each datum, and the
            rest (conditions, masks) stays.
        method: the chains, each way; None is `Annealed()`.
        batch_size: as in `ppvae.log_marginal`.
        seed: of the data and the draws; the global random state is left alone.
        compile: as there.
        progress: whether to show a progress bar.

    Returns:
        Both bounds, and the data.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: as in `Annealed.estimate`, and where the model cannot be simulated.

    Example:
        >>> import torch
        >>> from ppvae.evaluate import Annealed, bidirectional
        >>> from ppvae.models import PPCA
        >>> both = bidirectional(PPCA(8, 2), torch.zeros(10, 8), method=Annealed(num_chains=4, num_temperatures=5))
        >>> both.upper.values.shape
        torch.Size([10])
    """
    method = Annealed() if method is None else method
    if not isinstance(method, Annealed):
        raise TypeError(f"method must be an Annealed object or None, got {method!r}")
    check_flag("progress", progress)
    annealing = method.annealing()
    with posterior_sampler(pair, template, seed=seed, summed=True) as c, _bar(len(c), annealing, 2, progress) as bar:
        parts = _parts(c, annealing, batch_size)
        path = GeometricPath(c, method.start, compile=_compiles(compile, annealing, 2 * len(parts)))

        def both_ways(place: tuple[int, PosteriorSampler]) -> tuple[Chains, Chains, Batch]:
            first, simulated = place[0], simulate(place[1])
            part = replace(place[1], data=simulated.data)
            fitted = path.fitted(part)
            there = annealing.forward(fitted, part, first=first, tick=bar.update)
            back = annealing.backward(fitted, part, simulated.latents, there, first=first, tick=bar.update)
            return there, back, simulated.data

        runs = each_seeded(parts, both_ways, device=c.device)
    lower, upper, drawn = (list(of) for of in zip(*runs, strict=True))
    data = tuple(None if t[0] is None else torch.cat(t) for t in zip(*drawn, strict=True))
    num_dims = num_observed(pair, data, ())
    down = _estimate(upper, annealing, num_dims)
    up = replace(down, values=-down.values)
    return BidirectionalBounds(_estimate(lower, annealing, num_dims), up, method, data)


def _parts(c: PosteriorSampler, annealing: Annealing, batch_size: int | None) -> list[tuple[int, PosteriorSampler]]:
    """The data in blocks of about one size that stay within the memory budget, and the index of each one's first."""
    if batch_size is not None:
        check_count("batch_size", batch_size)
    n, most = len(c), max(1, c.sampler.rows // annealing.num_parallel)
    count = -(-n // min(most, batch_size or n))
    return [(start, replace(c, data=take(c.data, slice(start, stop)))) for start, stop in blocks(n, -(-n // count))]


def _compiles(compile: Compile, annealing: Annealing, num_runs: int) -> bool:
    """Whether to compile, for so many runs of the chains."""
    check_compile(compile)
    return repays(compile, num_runs * annealing.num_gradients, saved=SAVED)


def _bar(n: int, annealing: Annealing, num_runs: int, progress: bool) -> Any:
    """A progress bar over the temperatures of all data."""
    total, hidden = num_runs * n * annealing.num_temperatures, not progress or not is_first()
    return tqdm(total=total, unit="step", unit_scale=True, desc="annealing", leave=False, disable=hidden)


def _estimate(runs: list[Chains], annealing: Annealing, num_dims: float) -> LogMarginal:
    """The logarithm of the mean weight of each datum, with its error."""
    log_weight = torch.cat([chains.log_weight for chains in runs], 1)
    acceptance = torch.cat([chains.acceptance for chains in runs]).cpu()
    share = torch.cat([chains.share_outside for chains in runs]).cpu()
    diagnostics = AnnealedDiagnostics(acceptance, annealing.num_chains, annealing.num_temperatures, share)
    return LogMarginal.of_weights(log_weight, num_dims=num_dims, diagnostics=diagnostics)
