"""The marginal likelihood log p(x), per datum, by importance sampling from a proposal fitted to each datum's posterior.

    log p(x) ≈ log (1/s) Σ_i p(x, u_i) / q(u_i|x),      u_i ~ q(u|x)

with q a mixture of Student distributions and of the guide (`ppvae.sampling.adaptive`), so that an encoder that serves
all data, or a family that is too narrow, no longer decides what the estimate is worth. How many draws a datum takes is
read off pilot draws, which then count for nothing: the mean weight of the others has the expectation p(x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppvae._validate import check_count
from ppvae.compile.policy import Compile, check_compile, repays
from ppvae.evaluate.estimates import (
    Diagnostics,
    LogMarginal,
    PerDatum,
    errors_in_words,
    ess_in_words,
    log_mean,
)
from ppvae.evaluate.estimator import Estimator, EvaluationOptions
from ppvae.evaluate.psis import PARETO_GOOD, PARETO_SAMPLES, ParetoWarning, k_in_words, num_unreliable, pareto_k
from ppvae.evaluate.sites import num_observed
from ppvae.pair import Batch, blocks
from ppvae.processes import each_seeded, is_first
from ppvae.sampling.adaptive import Proposal, first_proposal, of_data
from ppvae.sampling.log_density import LogDensity
from ppvae.sampling.posterior_draws import PosteriorSampler

PILOTS = 200
"""Draws by which the first proposal of a datum is judged."""
PILOT_K = 0.5
"""The largest k̂ of pilots with which a proposal is left as it is: of so few draws k̂ is uncertain by 0.1 or 0.2."""
ROUNDS, POPULATION = 3, 500
"""At most so many population rounds, of so many draws, for a datum whose pilots have a larger k̂."""
LEAST, GROWTH = 200, 1.5
"""The fewest draws that count, from which k̂ can be told, and the ratio between the numbers that data may have."""
DATA_BLOCK = 64
"""The most data whose proposals are fitted at once."""
SAVED = 2.0
"""Milliseconds that compiling saves at an evaluation of a block, roughly."""


@dataclass(frozen=True)
class AdaptiveDiagnostics(Diagnostics):
    """The evidence for an estimate by adaptive importance sampling.

    Attributes:
        pareto_k: k̂ of the draws that count, (n,), see `ppvae.evaluate.pareto_k`: beyond 0.7 `values` is too low and
            `std_error` too small.
        num_draws: how many draws count of each datum, (n,).
        num_modes: components of its proposal, (n,).
        num_samples: the most that were allowed.
        tolerance: the standard error that was asked for, nats.
    """

    pareto_k: Tensor
    num_draws: Tensor
    num_modes: Tensor
    num_samples: int
    tolerance: float

    def num_unreliable(self) -> int:
        """How many data have k̂ > 0.7."""
        return num_unreliable(self.pareto_k)

    def verdict(self) -> str:
        """What k̂ says of the estimate."""
        return k_in_words(
            self.pareto_k,
            self.num_samples,
            "the proposals fitted to them have too light tails, so that their log p(x) is likely too low; "
            'method="annealed" does not depend on these, and method="auto" uses it for such data',
        )

    def in_words(self, estimate: LogMarginal) -> str:
        """How many draws counted, how sure each datum is, and the verdict."""
        several = int((self.num_modes > 1).sum())
        modes = f", {several} of the data with several modes" if several else ""
        draws = self.num_draws.double()
        return (
            f"{int(draws.min())} to {int(draws.max())} draws per datum (mean {float(draws.mean()):.0f}) from proposals "
            f"fitted to each{modes}, {ess_in_words(estimate)}; {errors_in_words(estimate)}; {self.verdict()}"
        )

    def settings(self) -> dict[str, int | str]:
        """The most draws of a datum."""
        return {"num_samples": self.num_samples, "draws": "fitted draws"}

    def figures(self) -> dict[str, Any]:
        """`num_draws` ("average", "max"), `several_modes` (a count), `k_hat` ("median", "above_0.7", a count)."""
        draws = self.num_draws.double()
        figures: dict[str, Any] = {
            "num_draws": {"average": float(draws.mean()), "max": int(draws.max())},
            "several_modes": int((self.num_modes > 1).sum()),
        }
        if self.num_samples >= PARETO_SAMPLES:
            median = float(self.pareto_k.median())
            figures["k_hat"] = {f"above_{PARETO_GOOD}": self.num_unreliable(), "median": median}
        return figures

    def of_datum(self) -> dict[str, PerDatum]:
        """`pareto_k`, `num_draws` and `num_modes`."""
        return {"pareto_k": self.pareto_k, "num_draws": self.num_draws, "num_modes": self.num_modes}

    def warning(self) -> Warning | None:
        """The verdict, where a datum has k̂ > 0.7."""
        return ParetoWarning(self.verdict()) if self.num_unreliable() else None


@dataclass(frozen=True)
class Adaptive(Estimator):
    """Importance sampling from proposals fitted to each datum, with `AdaptiveDiagnostics`.

    A search from the guide's draws finds the modes of p(x, z), a Gaussian is fitted to the mass around each, and pilot
    draws from Student distributions of these shapes, with a share of the guide's own, are judged by k̂; where it is
    above 0.5 up to three population rounds mend the proposal. Then as many fresh draws count as the pilots say are
    needed for `tolerance`. All that is asked of a pair is a gradient: latents are continuous, or marked for enumeration
    and summed over, and the guide may be of any kind, even a point.

    Args:
        num_samples: the most draws of a datum that count.
        tolerance: the standard error of log p̂(x) to aim for, nats.

    Raises:
        ValueError: where `num_samples` is no whole number >= 1, or `tolerance` not positive.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.evaluate import Adaptive
        >>> from ppvae.models import PPCA
        >>> pair, x = PPCA(8, 2), torch.randn(10, 8)
        >>> estimate = ppvae.log_marginal(pair, x, method=Adaptive(tolerance=0.02))
        >>> bool(((estimate.values - pair.log_prob(x)).abs() < 4 * estimate.std_error).all())
        True
    """

    num_samples: int = 2000
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        check_count("num_samples", self.num_samples)
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, int | float):
            raise TypeError(f"tolerance must be a number of nats, got {type(self.tolerance).__name__}")
        if not 0 < self.tolerance < math.inf:
            raise ValueError(f"tolerance must be a positive number of nats, got {self.tolerance}")

    @classmethod
    def from_num_samples(cls, num_samples: int) -> Self:
        """At most so many draws."""
        return cls(num_samples)

    def estimate(self, pair: nn.Module, data: Batch, options: EvaluationOptions) -> LogMarginal:
        """Estimates log p(x) of each datum, see `ppvae.log_marginal`.

        Raises:
            TypeError: where an argument is of the wrong kind.
            ValueError: where the pair or the data break the contract, a latent is discrete and not marked for
                enumeration, or a weight is NaN or infinite, naming the argument, the site or the datum.
        """
        size = DATA_BLOCK if options.batch_size is None else options.batch_size
        check_count("batch_size", size)
        hidden = not (options.progress and is_first())
        with (
            options.posterior_sampler(pair, data) as c,
            tqdm(total=len(c), unit="datum", desc="log p(x)", leave=False, disable=hidden) as bar,
        ):
            density = LogDensity(c, compile=_compiles(options.compile, c, self.num_samples))

            def of_block(place: tuple[int, int]) -> tuple[Tensor, ...]:
                index = torch.arange(*place, device=c.device)
                found = self._of_block(density, of_data(c, index), place[0])
                bar.update(len(index))
                return found

            found = each_seeded(blocks(len(c), min(size, c.sampler.rows)), of_block, device=c.device)
        values, std_error, ess, k, draws, modes = (torch.cat(of).cpu() for of in zip(*found, strict=True))
        diagnostics = AdaptiveDiagnostics(k, draws.long(), modes.long(), self.num_samples, self.tolerance)
        return LogMarginal(values, std_error, ess, num_observed(pair, data, options.given), diagnostics)

    def _of_block(self, density: LogDensity, part: PosteriorSampler, first: int) -> tuple[Tensor, ...]:
        """The estimate of some data: value, error, ess, k̂, draws and modes of each, (n,)."""
        proposal, wanted = self._proposed(density, part, first)
        found = torch.empty(6, len(part), dtype=torch.float64)
        for count in wanted.unique().tolist():
            index = (wanted == count).nonzero().flatten()
            theirs = proposal.of_data(index.to(part.device))
            _, log_weight = theirs.draw(count)
            _check(log_weight, first + index)
            value, std_error, ess = log_mean(log_weight)
            draws = torch.full_like(value, count)
            found[:, index] = torch.stack(
                [of.double().cpu() for of in (value, std_error, ess, pareto_k(log_weight), draws, theirs.num_modes)]
            )
        return tuple(found)

    def _proposed(self, density: LogDensity, part: PosteriorSampler, first: int) -> tuple[Proposal, Tensor]:
        """The proposal of each datum, and how many draws from it are to count, (n,) on the CPU."""
        proposal = first_proposal(density, part)
        todo = torch.arange(len(part))
        wanted = torch.full((len(part),), self.num_samples)
        theirs = proposal
        for i in range(ROUNDS + 1):
            u, log_weight = theirs.draw(POPULATION if i else PILOTS)
            _check(log_weight, first + todo)
            good = pareto_k(log_weight) <= PILOT_K
            wanted[todo] = torch.where(good, self._wanted(log_weight.cpu()), self.num_samples)
            bad = (~good).nonzero().flatten()
            if i == ROUNDS or not len(bad):
                break
            todo, where = todo[bad], bad.to(u.device)
            theirs = theirs.of_data(where).adapted(u[:, where], log_weight[:, where])
            proposal = proposal.with_data(todo.to(u.device), theirs)
        return proposal, wanted

    def _wanted(self, log_weight: Tensor) -> Tensor:
        """How many draws the tolerance takes, by these pilots; one of a few numbers, so that data go together."""
        s = len(log_weight)
        _, error, _ = log_mean(log_weight)
        exact = s * (error / self.tolerance).square().nan_to_num(math.inf)
        steps = (exact / LEAST).clamp_min(1.0).log().div(math.log(GROWTH)).ceil()
        return (LEAST * GROWTH**steps).clamp(max=self.num_samples).ceil().long()


def _check(log_weight: Tensor, datum: Tensor) -> None:
    """Checks that every weight is a number below infinity."""
    bad = ~(log_weight < math.inf)
    if bool(bad.any()):
        draw, i = bad.nonzero()[0].tolist()
        raise ValueError(
            f"the log weight of datum {int(datum[i])} is {float(log_weight[draw, i]):g} at a draw from the proposal "
            "fitted to it: check that datum and the weights of the pair"
        )


def _compiles(compile: Compile, c: PosteriorSampler, num_samples: int) -> bool:
    """Whether to compile: from how many blocks the draws come to."""
    check_compile(compile)
    return repays(compile, len(c) * num_samples / c.sampler.rows, saved=SAVED)
