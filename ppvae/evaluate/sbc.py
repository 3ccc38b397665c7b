"""Simulation-based calibration: whether the guide is the posterior of its model, judged by data of the model itself.

    z, x ~ p(z) p(x|z),   z_1 … z_l ~ q(z|x),   rank = #{i: z_i < z}

Where q(z|x) is the posterior the rank of every latent dimension is uniform on 0, …, l (Talts et al. 2018, "Validating
Bayesian inference algorithms with simulation-based calibration", arXiv 1804.06788). The distribution function of the
ranks is held against a band that contains all of it with a given probability (Säilynoja, Bürkner & Vehtari 2022,
"Graphical test for discrete uniformity and its applications", arXiv 2103.10522).

The guide is judged where the model puts its data. Real data may lie elsewhere, and there it may be worse; and uniform
ranks are necessary but not sufficient: the prior itself, a guide that ignores x, has them too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppvae._validate import check_count, check_number
from ppvae.evaluate.sites import Plates, by_datum, elements, inner_plates, mask_of, once
from ppvae.inputs import takes_data
from ppvae.pair import check_data
from ppvae.processes import each_seeded
from ppvae.result import Result
from ppvae.sampling.posterior_draws import PosteriorSampler, posterior_sampler, simulate

_NDArray = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SBCRanks:
    """Ranks of the latents that generated data, among draws from the guide given these data.

    Attributes:
        ranks: by latent site, integers (n, *plates, *event) from 0 to `num_samples`; −1 where a mask leaves the latent
            out of the density.
        num_samples: l, draws per simulation.
    """

    ranks: dict[str, Tensor]
    num_samples: int

    def by_element(self) -> dict[str, Tensor]:
        """The ranks of each latent dimension by its name, as z[0], those that are masked left out: (n,) or fewer."""
        ranks: dict[str, Tensor] = {}
        for name, values in self.ranks.items():
            columns = values.reshape(len(values), -1).unbind(1)
            ranks |= {
                element: column[column >= 0]
                for element, column in zip(elements(name, tuple(values.shape[1:])), columns, strict=True)
            }
        return {element: column for element, column in ranks.items() if len(column) > 0}


@dataclass(frozen=True, repr=False)
class SBCVerdict(Result):
    """Whether the ranks are uniform.

    Attributes:
        p_values: of each latent dimension by its name, before any correction: the probability that uniform ranks leave
            a band as wide as these ones just leave.
        findings: a sentence for each dimension that is not calibrated, the worst first.
        level: the probability that a calibrated guide is rejected, at most, over all dimensions together.
        num_simulations: n.
    """

    p_values: dict[str, float]
    findings: tuple[str, ...]
    level: float
    num_simulations: int

    @property
    def calibrated(self) -> bool:
        """Whether no dimension is rejected."""
        return not self.findings

    def summary(self) -> str:
        """The verdict and its findings for a person."""
        k = len(self.p_values)
        verdict = (
            f"calibration: {len(self.findings)} of {k} latent dimensions rejected at level {self.level:g} "
            f"over all of them; {self.num_simulations} simulations, least p-value {min(self.p_values.values()):.2g}"
        )
        return "\n".join([verdict, *(f"  {finding}" for finding in self.findings)])


@takes_data
def run_sbc(
    pair: nn.Module, *data: Any, num_simulations: int | None = None, num_samples: int = 99, seed: int = 0
) -> SBCRanks:
    """Draws latents and data from the model, and ranks the former among draws from the guide given the latter.

    Args:
        pair: any model/guide pair.
        data: its arguments, (n, ...), a template: what is observed is drawn anew, conditions and masks stay.
        num_simulations: how many; the template is repeated as often as they need. By default n.
        num_samples: l, draws from the guide per simulation.
        seed: of the draws; the global random state is left alone.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, an argument is out of range, or the data cannot be
            drawn from the model in one pass (see `ppvae.sampling.simulate`).

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> ranks = run_sbc(PPCA(8, 2), torch.zeros(1, 8), num_simulations=200)
        >>> ranks.ranks["z"].shape
        torch.Size([200, 2])
        >>> check_sbc(ranks, level=1e-6).calibrated
        True
    """
    check_count("num_samples", num_samples)
    n = check_data(data)
    if num_simulations is not None:
        check_count("num_simulations", num_simulations)
        index = torch.arange(num_simulations) % n
        data = tuple(t if t is None else t[index.to(t.device)] for t in data)
    with posterior_sampler(pair, data, seed=seed) as template:
        plates = inner_plates(template)
        blocks = [part for _, part in template.parts(num_samples)]
        parts = each_seeded(blocks, lambda part: _ranks(part, num_samples, plates), device=template.device)
    return SBCRanks({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, num_samples)


def check_sbc(ranks: SBCRanks, *, level: float = 0.05) -> SBCVerdict:
    """Tests whether the ranks of every latent dimension are uniform, and says in which way they are not.

    A dimension is rejected where its ranks leave the band of `ecdf_band` at level / k, k dimensions (Bonferroni): a
    calibrated guide is rejected with probability `level` at most.

    Args:
        ranks: of `run_sbc`.
        level: between 0 and 1.

    Raises:
        ValueError: where `level` is out of range, or masks leave out every latent.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> untrained = PPCA(8, 2, guide="amortized")
        >>> check_sbc(run_sbc(untrained, torch.zeros(1, 8), num_simulations=200)).calibrated
        False
    """
    check_number("level", level, above=0, below=1)
    if not isinstance(ranks, SBCRanks):
        raise TypeError(f"ranks must be what run_sbc returns, SBCRanks, got {type(ranks).__name__}")
    of = {name: column.numpy() for name, column in ranks.by_element().items()}
    if not of:
        raise ValueError(f"ranks hold no latent that counts: masks leave out all of {list(ranks.ranks)}")
    values = {name: _p_value(column, ranks.num_samples) for name, column in of.items()}
    rejected = sorted((name for name in of if values[name] <= level / len(of)), key=lambda name: values[name])
    sentences = tuple(_sentence(name, of[name], ranks.num_samples) for name in rejected)
    return SBCVerdict(values, sentences, level, len(next(iter(ranks.ranks.values()))))


def ecdf_band(num_simulations: int, num_samples: int, *, level: float = 0.05) -> tuple[_NDArray, _NDArray]:
    """The simultaneous band of the distribution function of uniform ranks (Säilynoja et al. 2022).

    Everywhere a binomial interval of the same probability, such that the function stays in all of them together with
    probability 1 − level; computed, not simulated.

    Args:
        num_simulations: n, how many ranks.
        num_samples: l, the largest rank.
        level: the probability that the function leaves the band, at most.

    Returns:
        The lowest and the highest values at the ranks 0, …, l, each (l + 1,).

    Raises:
        ValueError: where an argument is out of range.

    Example:
        >>> low, high = ecdf_band(200, 9)
        >>> low.round(2)
        array([0.05, 0.13, 0.22, 0.32, 0.41, 0.51, 0.62, 0.72, 0.84, 1.  ])
    """
    check_count("num_simulations", num_simulations)
    check_count("num_samples", num_samples)
    check_number("level", level, above=0, below=1)
    n = num_simulations
    low, high = math.log(level / num_samples), math.log(level)  # each of the l points alone is left that rarely
    while high - low > 1e-6:
        middle = (low + high) / 2
        leaves = 1 - _inside(n, _least(n, num_samples, math.exp(middle)))
        low, high = (middle, high) if leaves <= level else (low, middle)
    least = _least(n, num_samples, math.exp(low))
    return np.append(least, n) / n, np.append(n - least[::-1], n) / n


def _ranks(template: PosteriorSampler, num_samples: int, plates: dict[str, Plates]) -> dict[str, Tensor]:
    """Ranks of one simulation for each datum, (n, *plates, *event), ties broken at random."""
    drawn = simulate(template)
    part = replace(template, data=drawn.data)
    draws, _ = part.draw(num_samples)
    sites = once(part)
    ranks = {}
    for name in part.latents:
        truth, samples = by_datum(drawn.latents[name], plates[name]), by_datum(draws[name], plates[name])
        below, equal = (samples < truth).sum(0), (samples == truth).sum(0)
        rank = below + (torch.rand(below.shape, device=below.device, dtype=torch.float64) * (equal + 1)).long()
        ranks[name] = rank.where(mask_of(sites[name], plates[name]), -1).cpu()
    return ranks


def _sentence(name: str, ranks: _NDArray, num_samples: int) -> str:
    """How the ranks depart from uniform ones, by their mean or their spread, whichever is less likely."""
    k, n = num_samples + 1, len(ranks)
    centred = (ranks + 0.5) / k - 0.5
    variance = (k**2 - 1) / (12 * k**2)
    fourth = (k**2 - 1) * (3 * k**2 - 7) / (240 * k**4)
    shift, spread = float(centred.mean()), float((centred**2).mean()) / variance
    z_shift, z_spread = shift / math.sqrt(variance / n), (spread - 1) * variance / math.sqrt((fourth - variance**2) / n)
    if max(abs(z_shift), abs(z_spread)) < 3:
        return f"{name}: the ranks are not uniform, though their mean and spread are nearly so: see their histogram"
    if abs(z_shift) >= abs(z_spread):
        side, above = ("low", "above") if shift > 0 else ("high", "below")
        share = float((centred * math.copysign(1, shift) > 0).mean())
        return (
            f"{name}: q(z|x) lies too {side}: in {100 * share:.1f} % of the simulations the latent that generated the "
            f"data is {above} the middle of the draws"
        )
    width, dispersed = ("narrow", "under-dispersed") if spread > 1 else ("wide", "over-dispersed")
    return (
        f"{name}: q(z|x) is too {width} ({dispersed}): the ranks' variance is {spread:.2f} times that of uniform ones"
    )


def _cdf(num_samples: int) -> _NDArray:
    """P(rank ≤ r) of uniform ranks, r = 0, …, l − 1."""
    return np.arange(1, num_samples + 1) / (num_samples + 1)


def _p_value(ranks: _NDArray, num_samples: int) -> float:
    """The probability that uniform ranks come as near to the tails, or nearer, of one of their binomials."""
    from scipy.stats import binom

    n, cdf = len(ranks), _cdf(num_samples)
    counts = np.bincount(ranks, minlength=num_samples + 1).cumsum()[:-1]
    tails = np.minimum(binom.cdf(counts, n, cdf), binom.cdf(n - counts, n, cdf[::-1]))
    tail = 2 * float(tails.min())
    return 1 - _inside(n, _least(n, num_samples, tail)) if tail < 1 else 1.0


def _least(n: int, num_samples: int, tail: float) -> _NDArray:
    """The least counts at the points of `_cdf` with 2 P(count ≤ least) > tail; the greatest are their mirror image."""
    from scipy.stats import binom

    cdf = _cdf(num_samples)
    least = binom.ppf(tail / 2, n, cdf)
    least = least - (2 * binom.cdf(least - 1, n, cdf) > tail)  # the quantile is rounded
    return (least + (2 * binom.cdf(least, n, cdf) <= tail)).astype(int)


def _inside(n: int, least: _NDArray) -> float:
    """P(least ≤ counts ≤ greatest at all points) of n uniform ranks.

    The numbers of ranks of each value are independent Poisson variables given that their sum is n: the distribution
    of the counts goes from one point to the next by a convolution, and ends at n.
    """
    from scipy.stats import poisson

    greatest = n - least[::-1]
    if (least > greatest).any():
        return 0.0
    rate = n / (len(least) + 1)
    low, mass = 0, np.ones(1)
    for lower, upper in zip([*least, n], [*greatest, n], strict=True):
        step = poisson.pmf(np.arange(upper - low + 1), rate)
        mass, low = np.convolve(mass, step)[lower - low : upper - low + 1], lower
    return min(1.0, float(mass[0] / poisson.pmf(n, n)))
