"""The marginal likelihood log p(x), per datum, by importance sampling from the guide.

    log p(x) ≈ log (1/s) Σ_i w_i,       w = p(x, z) / q(z|x),  z ~ q(z|x)

(Burda et al. 2016, "Importance weighted autoencoders", 1509.00519): a lower bound in expectation, which rises to log
p(x) with s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppvae._validate import check_count
from ppvae.evaluate.estimates import (
    Diagnostics,
    LogMarginal,
    PerDatum,
    errors_in_words,
    ess_in_words,
    log_mean,
    mean_over_data,
    outside_in_words,
)
from ppvae.evaluate.estimator import Estimator, EvaluationOptions
from ppvae.evaluate.psis import (
    PARETO_GOOD,
    PARETO_SAMPLES,
    ParetoWarning,
    bound_curve,
    k_in_words,
    num_unreliable,
    pareto_k,
)
from ppvae.evaluate.sites import num_observed
from ppvae.pair import Batch, check_batch, check_pair
from ppvae.params import LocalParams
from ppvae.processes import is_first
from ppvae.sampling.importance import Draws, importance_draws

MOSTLY_OUTSIDE = 0.9
"""From what share of draws outside the support of a prior on there is a warning."""


class SupportWarning(UserWarning):
    """Most draws of the guide have weight zero: outside the support of the prior, or the data impossible given them."""


@dataclass(frozen=True)
class ImportanceDiagnostics(Diagnostics):
    """The evidence for an estimate by importance sampling.

    Attributes:
        pareto_k: k̂, (n,): beyond 0.7 `values` is too low and `std_error` too small, by how much is unknown. −inf
            where the weights are all alike, NaN for less than 100 samples, see `ppvae.evaluate.pareto_k`.
        bound: the lower bound with K samples in place of all of them, (n,), nats, for K = 1, 2, 5, 10, 20, ... and
            `num_samples`, where it is `values`. Where it still rises at the end, so would `values` with more samples.
        num_samples: draws per datum.
        share_outside: of the draws, how many have weight zero, outside the support of prior or likelihood, (n,); None
            is not known.
        codes: discrete latents to which the guide gives one value for each datum. `values` are then a bound, no
            estimate: log p(x) sums over all values. There is no k̂, no effective size and no standard error (NaN).
    """

    pareto_k: Tensor
    bound: dict[int, Tensor]
    num_samples: int
    share_outside: Tensor | None = None
    codes: tuple[str, ...] = ()

    def num_unreliable(self) -> int:
        """How many data have k̂ > 0.7."""
        return num_unreliable(self.pareto_k)

    def verdict(self) -> str:
        """What k̂ says of the estimate."""
        if self.codes:
            return (
                f"a bound, not an estimate: the guide gives {', '.join(self.codes)} one value, log p(x) sums over all"
            )
        return k_in_words(
            self.pareto_k,
            self.num_samples,
            "the guide's tails are too light for them, so that their log p(x) is likely too low and its standard error "
            'too small; a guide that is wider or closer to the posterior helps, and so does method="auto"',
        )

    def in_words(self, estimate: LogMarginal) -> str:
        """How many samples counted, how sure each datum is, how the bound rose, and the verdict."""
        outside = "" if self.share_outside is None else outside_in_words(self.share_outside)
        if self.codes:
            return f"{self.num_samples} draws per datum{outside}; {self.verdict()}"
        if self.num_samples == 1:
            return "1 importance sample per datum, exact where all latents are summed over"
        bound = ", ".join(f"{float(self.bound[k].mean()):.3f} (K = {k})" for k in list(self.bound)[-4:])
        return (
            f"{self.num_samples} importance samples per datum{outside}, {ess_in_words(estimate)}; "
            f"{errors_in_words(estimate)}; bound with K samples: {bound}; {self.verdict()}"
        )

    def settings(self) -> dict[str, int | str]:
        """The number of samples."""
        return {"num_samples": self.num_samples}

    def figures(self) -> dict[str, Any]:
        """`bound` by the number of samples; from 100 samples `k_hat` ("median", and "above_0.7", a count).

        Where draws lie outside the support of the prior, `share_outside` ("average", "max").
        """
        figures: dict[str, Any] = {"bound": {str(size): mean_over_data(bound) for size, bound in self.bound.items()}}
        if self.share_outside is not None and bool((self.share_outside > 0).any()):
            figures["share_outside"] = {
                "average": float(self.share_outside.mean()),
                "max": float(self.share_outside.max()),
            }
        if self.num_samples >= PARETO_SAMPLES and not self.codes:
            median = float(self.pareto_k.median())
            figures["k_hat"] = {f"above_{PARETO_GOOD}": self.num_unreliable(), "median": median}
        return figures

    def of_datum(self) -> dict[str, PerDatum]:
        """`pareto_k`, `bound` by the number of samples, and `share_outside` where it is known."""
        known = {} if self.share_outside is None else {"share_outside": self.share_outside}
        return {"pareto_k": self.pareto_k, "bound": self.bound, **known}

    def warning(self) -> Warning | None:
        """The verdict, where a datum has k̂ > 0.7; else what was drawn outside the support, where that is most draws."""
        if self.num_unreliable():
            return ParetoWarning(self.verdict())
        share = torch.zeros(1) if self.share_outside is None else self.share_outside
        if not bool((share > MOSTLY_OUTSIDE).any()):
            return None
        return SupportWarning(
            f"for {int((share > MOSTLY_OUTSIDE).sum())} of {len(share)} data most draws of the guide have "
            f"weight zero, up to {100 * float(share.max()):.3g} %, and few are left: they lie outside the support of "
            "the prior, or the data outside that of the likelihood given them. Give the guide that of the posterior"
        )


@dataclass(frozen=True)
class Importance(Estimator):
    """Importance sampling from the guide, with `ImportanceDiagnostics`.

    Args:
        num_samples: s, draws from the guide per datum; exactly that many, whatever the chunking.

    Raises:
        ValueError: where it is no whole number >= 1.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.evaluate import Importance
        >>> from ppvae.models import PPCA
        >>> estimate = ppvae.log_marginal(PPCA(8, 2), torch.randn(10, 8), method=Importance(num_samples=20))
        >>> list(estimate.diagnostics.bound)
        [1, 2, 5, 10, 20]
    """

    num_samples: int = 1000

    def __post_init__(self) -> None:
        check_count("num_samples", self.num_samples)

    @classmethod
    def from_num_samples(cls, num_samples: int) -> Self:
        """So many draws."""
        return cls(num_samples)

    def estimate(self, pair: nn.Module, data: Batch, options: EvaluationOptions) -> LogMarginal:
        """Estimates log p(x) of each datum, see `ppvae.log_marginal`."""
        check_pair(pair)
        params = LocalParams(pair, attach=False)  # one for the draws and for the look at what is observed
        draws_of = checked_draws(pair, data, self.num_samples, options, params)
        blocks: list[tuple[Tensor, ...]] = []
        bounds: list[dict[int, Tensor]] = []
        codes: tuple[str, ...] = ()
        for _, of_block in groupby(draws_of, key=lambda draws: draws.start):
            found = [(draws.log_weight(), draws.share_outside(), draws.codes) for draws in of_block]
            log_weight, outside = (torch.cat(tensors).double() for tensors in list(zip(*found, strict=True))[:2])
            codes = found[0][2]
            bounds.append(bound_curve(log_weight))
            value, *evidence = *log_mean(log_weight), pareto_k(log_weight)
            if codes:  # a bound has none
                evidence = [torch.full_like(of, math.nan) for of in evidence]
            blocks.append((value, *evidence, outside.mean(0)))
        values, std_error, ess, k, outside = (cat(parts) for parts in zip(*blocks, strict=True))
        bound = {size: cat([bound[size] for bound in bounds]) for size in bounds[0]}
        num_dims = num_observed(pair, data, options.given, params)
        diagnostics = ImportanceDiagnostics(k, bound, self.num_samples, outside, codes)
        return LogMarginal(values, std_error, ess, num_dims, diagnostics)


def checked_draws(
    pair: nn.Module, data: Batch, num_samples: int, options: EvaluationOptions, params: LocalParams | None = None
) -> Iterator[Draws]:
    """The importance draws of a pair, each of whose weights is a number below infinity, as a progress bar counts them.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or a weight is NaN or infinite, naming the argument,
            the site or the datum.
    """
    check_count("num_samples", num_samples)
    total = num_samples * check_batch(data)
    draws_of = importance_draws(
        pair,
        data,
        num_samples=num_samples,
        batch_size=options.batch_size,
        seed=options.seed,
        compile=options.compile,
        given=options.given,
        autocast=options.autocast,
        params=params,
    )
    hidden = not options.progress or not is_first()
    with tqdm(total=total, unit="draw", unit_scale=True, desc="log p(x)", leave=False, disable=hidden) as bar:
        for draws in draws_of:
            bad = ~(draws.log_ratio() < math.inf)
            if bool(bad.any()):
                raise ValueError(_describe(draws, *bad.nonzero()[0].tolist()))
            yield draws
            bar.update(bad[0].numel())


def cat(blocks: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """Values of all data from those of consecutive blocks, shape (n,), on the CPU."""
    return torch.cat(blocks).cpu()


def _describe(draws: Draws, value: int, sample: int, datum: int) -> str:
    """What went wrong in one weight, term by term; `value` is the joint value of the enumerated sites."""
    terms = {"log p(x|z)": draws.log_likelihood}
    terms |= {f"log p({site})": value for site, value in draws.log_prior.items()}
    terms |= {f"log q({site}|x)": value for site, value in draws.log_posterior.items()}
    values = {name: float(term[value, sample, datum]) for name, term in terms.items()}
    found = ", ".join(f"{name} = {found:g}" for name, found in values.items() if not math.isfinite(found))
    weight = float(draws.log_ratio()[value, sample, datum])
    return (
        f"the log importance weight of datum {draws.start + datum} is {weight:g}, because {found}: "
        "check that datum and the weights of the pair"
    )
