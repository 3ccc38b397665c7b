"""The ELBO and the marginal likelihood log p(x), per datum.

    ELBO(x)  = E_q[log w],              w = p(x, z) / q(z|x),  z ~ q(z|x)
    log p(x) = log E_q[w]

Both are estimated as lower bounds in expectation, in nats, and higher is better. Scales (a KL weight) and the guide's
auxiliary factors are ignored: this is the likelihood of the generative model, whatever objective trained it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ppvae.compile.policy import Compile
from ppvae.evaluate.adaptive import Adaptive
from ppvae.evaluate.ais import Annealed
from ppvae.evaluate.auto import Auto
from ppvae.evaluate.estimates import Elbo, LogMarginal
from ppvae.evaluate.estimator import Estimator, EvaluationOptions
from ppvae.evaluate.importance import Importance, cat, checked_draws
from ppvae.inputs import takes_data
from ppvae.pair import Batch, take
from ppvae.processes import is_first

METHODS: dict[str, type[Estimator]] = {
    "importance": Importance,
    "adaptive": Adaptive,
    "annealed": Annealed,
    "auto": Auto,
}
"""The ways to estimate log p(x), by name; put one of your own here to have it under a name too."""

ROUNDING_DATA = 32
"""On how many data the effect of `autocast` is measured."""


@takes_data
def elbo(
    pair: nn.Module,
    *data: Any,
    num_samples: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    compile: Compile = "auto",
    given: Sequence[str] = (),
    progress: bool = False,
) -> Elbo:
    """Estimates the ELBO of each datum and its terms, E_q[log p(x|z)] − Σ KL(q ‖ p).

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors or arrays of shape (n, ...), on any device; or one iterable of minibatches of them.
        num_samples: draws from the guide per datum.
        batch_size: the most data scored at once; by default what a memory budget allows.
        seed: of the draws; the global random state is left alone.
        compile: whether to run the draws as one compiled graph, see `ppvae.compile.compiled`; "auto" does where the
            estimate takes long enough to repay it.
        given: observed sites to condition on, e.g. `["y"]` for log p(x|y) in place of log p(x, y); they must depend
            on no latent.
        progress: whether to show a progress bar.

    Returns:
        The estimates, as float64 tensors on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or a weight is NaN or infinite, naming the
            argument, the site or the datum.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> terms = ppvae.elbo(PPCA(8, 2), torch.randn(100, 8), num_samples=10)
        >>> terms.values.shape
        torch.Size([100])
    """
    blocks: list[dict[str, _Moments]] = []
    start = -1
    options = EvaluationOptions(batch_size=batch_size, seed=seed, compile=compile, given=given, progress=progress)
    for draws in checked_draws(pair, data, num_samples, options):
        terms = {"elbo": draws.elbo(), "reconstruction": draws.reconstruction()}
        terms |= {f"kl_{site}": value for site, value in draws.kl().items()}
        terms["outside"] = draws.share_outside()
        if draws.start != start:
            start = draws.start
            blocks.append({name: _Moments() for name in terms})
        for name, value in terms.items():
            blocks[-1][name].add(value.double())
    names = dict.fromkeys(name for block in blocks for name in block)  # a block of short series may have fewer latents
    moments = {name: cat([_mean_in(block, name) for block in blocks]) for name in names}
    variance = cat([block["elbo"].variance() for block in blocks])
    outside = moments.pop("outside")
    return Elbo(
        values=moments.pop("elbo"),
        reconstruction=moments.pop("reconstruction"),
        kl={name.removeprefix("kl_"): value for name, value in moments.items()},
        std_error=(variance / num_samples).sqrt(),
        num_samples=num_samples,
        share_outside=outside,
    )


@takes_data
def log_marginal(
    pair: nn.Module,
    *data: Any,
    num_samples: int | None = None,
    method: str | Estimator = "importance",
    batch_size: int | None = None,
    seed: int = 0,
    compile: Compile = "auto",
    given: Sequence[str] = (),
    progress: bool = False,
    autocast: torch.dtype | None = None,
) -> LogMarginal:
    """Estimates log p(x) of each datum, and says how far to trust it.

    By importance sampling from the guide, log p̂(x) = log (1/s) Σ_i p(x, z_i) / q(z_i|x), z_i ~ q(z|x): a lower bound in
    expectation that rises to log p(x) with s (Burda et al. 2016, arXiv 1509.00519). Latents may be continuous or
    discrete. Those that the guide (or the model alone) marks with `infer={"enumerate": "parallel"}` are summed over
    exactly, and s samples of the others are drawn for each of their values:
    log p̂(x) = log Σ_y (1/s) Σ_i p(x, y, z_i) / q(z_i|x, y).

    With `method="adaptive"` the draws come from proposals fitted to the posterior of each datum, at most s of them and
    as many as a standard error of 0.05 nats takes, see `ppvae.evaluate.Adaptive`: right where the guide is not.

    With `method="annealed"` by s chains that move from the guide to the posterior, see `ppvae.evaluate.Annealed`:
    slower, and right where the guide misses part of the posterior.

    With `method="auto"` by importance sampling, and of the data whose k̂ is above 0.7, or standard error above 0.1 nats,
    by the next of these methods; `diagnostics.method` says which datum had which, see `ppvae.evaluate.Auto`.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors or arrays of shape (n, ...), on any device; or one iterable of minibatches of them.
        num_samples: s, draws from the guide per datum, by default 1,000, or chains, by default 16; exactly that many,
            whatever the chunking (of "adaptive" the most, by default 2,000).
        method: "importance", "adaptive", "annealed", "auto" or another name in `ppvae.evaluate.METHODS`; or an
            estimator with options of its own, `Annealed(num_chains=16, num_temperatures=1000)`, which holds
            `num_samples` too.
        batch_size: the most data scored at once; by default what a memory budget allows.
        seed: of the draws; the global random state is left alone.
        compile: whether to run the draws as one compiled graph, see `ppvae.compile.compiled`; "auto" does where the
            estimate takes long enough to repay it.
        given: observed sites to condition on, e.g. `["y"]` for log p(x|y) in place of log p(x, y); they must depend
            on no latent.
        progress: whether to show a progress bar.
        autocast: dtype of matrix products and convolutions in the pair's code (`torch.autocast`), e.g. `torch.bfloat16`
            on a GPU; densities and proposals keep their own. What that makes of the values is measured on the first
            data, see `LogMarginal.rounding`.

    Returns:
        The estimates with their standard errors and effective sample sizes, as float64 tensors on the CPU, and the
        method's diagnostics: k̂ and bounds, or the acceptance of the chains.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the method is unknown, the pair or the data break the contract, or a weight is NaN or
            infinite, naming the argument, the site or the datum.

    Warns:
        ParetoWarning: where k̂ > 0.7, which makes the estimates of those data unreliable; it counts them.
        SupportWarning: where most draws of a datum have weight zero, outside the support of prior or likelihood.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> estimate = ppvae.log_marginal(PPCA(8, 2), torch.randn(100, 8), num_samples=50)
        >>> estimate.values.shape
        torch.Size([100])
    """
    options = EvaluationOptions(
        batch_size=batch_size, seed=seed, compile=compile, given=given, progress=progress, autocast=autocast
    )
    estimator = estimator_of(method, num_samples)
    estimate = estimator.estimate(pair, data, options)
    if autocast is not None:
        estimate = replace(estimate, rounding=_rounding(estimator, pair, data, options))
    if is_first() and (warning := estimate.diagnostics.warning()) is not None:
        warnings.warn(warning, stacklevel=3)  # the caller of what `takes_data` made
    return estimate


def _rounding(estimator: Estimator, pair: nn.Module, data: Batch, options: EvaluationOptions) -> Tensor:
    """What `autocast` makes of the estimate of each of the first data, nats, by the same random numbers."""
    few = take(data, slice(0, ROUNDING_DATA))
    coarse, fine = (
        estimator.estimate(pair, few, replace(options, autocast=dtype, progress=False)).values
        for dtype in (options.autocast, None)
    )
    return coarse - fine


def estimator_of(method: str | Estimator, num_samples: int | None = None) -> Estimator:
    """The estimator that `method` and `num_samples` of `log_marginal` mean.

    Raises:
        ValueError: where there is none of that name, or `num_samples` comes beside an estimator, which has its own.
    """
    if isinstance(method, Estimator):
        if num_samples is not None:
            meant = type(method).from_num_samples(num_samples)
            raise ValueError(
                f"num_samples={num_samples} belongs on the method, which is an object with options of its own: "
                f"got method={method}, give one like method={meant}"
            )
        return method
    if not isinstance(method, str) or method not in METHODS:
        names = ", ".join(map(repr, METHODS))
        raise ValueError(f"method must be one of {names} or an Estimator such as Annealed(), got {method!r}")
    kind = METHODS[method]
    return kind() if num_samples is None else kind.from_num_samples(num_samples)


def _mean_in(block: dict[str, _Moments], name: str) -> Tensor:
    """The mean of a term in one block of data, zero where it has no such term."""
    return block[name].mean if name in block else torch.zeros_like(block["elbo"].mean)


class _Moments:
    """Mean and variance over draws that arrive in blocks, stable where the mean is large (Chan et al. 1983)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.deviations: Any = 0.0
        """Σ (value − mean)² over the draws."""

    def add(self, values: Tensor) -> None:
        """Adds a block of draws, shape (s, n)."""
        mean = values.mean(0)
        before, self.count = self.count, self.count + len(values)
        old, new = before / self.count, len(values) / self.count
        self.deviations = self.deviations + ((values - mean) ** 2).sum(0) + (mean - self.mean) ** 2 * (before * new)
        self.mean = self.mean * old + mean * new  # stays −inf once it is, where an update by differences would be NaN

    def variance(self) -> Tensor:
        """Unbiased, shape (n,); NaN for a single draw."""
        return self.deviations / (self.count - 1) if self.count > 1 else torch.full_like(self.mean, math.nan)
