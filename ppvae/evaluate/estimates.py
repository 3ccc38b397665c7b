"""What the estimators of the ELBO and of log p(x) return: a value for each datum, and the evidence for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.result import Result

PerDatum = Tensor | dict[int, Tensor]
"""Values of shape (n,), or several of them by a number, as the bounds are by their number of samples."""


@dataclass(frozen=True, repr=False)
class Elbo(Result):
    """The evidence lower bound of each datum, and its two terms.

    Attributes:
        values: E_q[log p(x, z) − log q(z|x)], shape (n,), nats.
        reconstruction: E_q[log p(x|z)], (n,), nats.
        kl: E_q[log q(z|x) − log p(z)] of each latent site, (n,), nats.
        std_error: standard error of `values` from the draws, (n,), nats; NaN for a single draw, or where a draw has
            weight zero (`values` is then −inf).
        num_samples: draws per datum.
        share_outside: of the draws, how many have weight zero, (n,): outside the support of the prior, where no
            reconstruction exists (NaN), or of the likelihood; None is not known.
    """

    values: Tensor
    reconstruction: Tensor
    kl: dict[str, Tensor]
    std_error: Tensor
    num_samples: int
    share_outside: Tensor | None = None

    def mean(self) -> float:
        """The mean over the data, nats per datum."""
        return float(self.values.mean())

    def mean_std_error(self) -> float:
        """Standard error of the mean: the spread over the data, which includes that of the draws."""
        return standard_error(self.values)

    def summary(self) -> str:
        """One sentence for a person: the mean, its error, and the terms it is made of."""
        outside = "" if self.share_outside is None else outside_in_words(self.share_outside)
        kl = "".join(f" − KL {site} {float(value.mean()):.3f}" for site, value in self.kl.items())
        return (
            f"ELBO = {self.mean():.3f} ± {self.mean_std_error():.3f} nats, mean ± standard error over "
            f"{len(self.values)} data; reconstruction {float(self.reconstruction.mean()):.3f}{kl}; "
            f"{self.num_samples} draws per datum{outside}"
        )


class Diagnostics(ABC):
    """What a method knows of how well it has worked; every estimator has a small class of its own."""

    @abstractmethod
    def in_words(self, estimate: LogMarginal) -> str:
        """What it says of its estimate, for a person: the part of the summary after the mean."""

    @abstractmethod
    def settings(self) -> dict[str, int | str]:
        """What the estimate was made with, ready for JSON.

        `num_samples` at least, and where these are no importance samples `draws`, what a table calls them.
        """

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """What a report holds of it, ready for JSON: numbers, and dictionaries of numbers.

        A {"mean", "std_error"} in nats is a row of the table, anything else a line below it.
        """

    @abstractmethod
    def of_datum(self) -> dict[str, PerDatum]:
        """What it knows of each datum, by name, for files; k̂, where it has one, as `pareto_k`."""

    @abstractmethod
    def warning(self) -> Warning | None:
        """What `log_marginal` warns of, where an estimate should not be believed."""


@dataclass(frozen=True, repr=False)
class LogMarginal(Result):
    """An estimate of log p(x) for each datum, whatever the method.

    Attributes:
        values: log p̂(x), shape (n,), nats.
        std_error: standard error of `values` by the delta method, (n,), nats; NaN for a single draw.
        ess: effective sample size (Σw)² / Σw² of the draws, (n,). Where every weight is zero, `values` is −inf, and
            `std_error` and `ess` are NaN; both are NaN too where `values` are a bound and no estimate.
        num_dims: elements of one datum that the model scores, for bits per dimension; their mean over the data where
            masks leave some out.
        diagnostics: what the method knows of how well it has worked, in a class of its own.
        rounding: what products in a narrower dtype, `autocast`, made of `values`, for the first m data: their log p̂(x)
            less that without it, from the same random numbers, (m,), nats; None without `autocast`.
    """

    values: Tensor
    std_error: Tensor
    ess: Tensor
    num_dims: float
    diagnostics: Diagnostics
    rounding: Tensor | None = None

    @classmethod
    def of_weights(cls, log_weight: Tensor, *, num_dims: float, diagnostics: Diagnostics) -> LogMarginal:
        """The estimate log (1/s) Σ w of weights whose expectation is p(x).

        Args:
            log_weight: log w of each draw, shape (s, n), nats; −inf is a weight of zero.
            num_dims: see the attributes.
            diagnostics: of these draws.

        Returns:
            The estimate, as float64 tensors on the CPU.
        """
        values, std_error, ess = log_mean(log_weight.double().cpu())
        return cls(values, std_error, ess, num_dims, diagnostics)

    @property
    def pareto_k(self) -> Tensor:
        """k̂, shape (n,): beyond 0.7 `values` is too low and `std_error` too small; NaN where the method has none."""
        k = self.diagnostics.of_datum().get("pareto_k")
        return k if isinstance(k, Tensor) else torch.full_like(self.values, math.nan)

    def mean(self) -> float:
        """The mean over the data, nats per datum."""
        return float(self.values.mean())

    def mean_std_error(self) -> float:
        """Standard error of the mean: the spread over the data, which includes that of the estimates."""
        return standard_error(self.values)

    def bits_per_dim(self) -> float:
        """−mean log p(x) / (d ln 2), bits per element of a datum; NaN where these are numbers and levels together."""
        return -self.mean() / (self.num_dims * math.log(2.0))

    def perplexity(self) -> float:
        """exp(−Σ log p(x) / Σ d): of a sequence, per token; NaN where elements are numbers and levels together."""
        return 2.0 ** self.bits_per_dim()

    def summary(self) -> str:
        """One paragraph for a person: the mean, its error, and how well the method has worked."""
        mixed = math.isnan(self.num_dims)
        bits = "densities and probabilities together" if mixed else f"{self.bits_per_dim():.4f} bits per dimension"
        return (
            f"log p(x) = {self.mean():.3f} ± {self.mean_std_error():.3f} nats ({bits}), "
            f"mean ± standard error over {len(self.values)} data; {self.diagnostics.in_words(self)}"
            f"{rounding_in_words(self.rounding)}"
        )


def log_mean(log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the mean weight of each datum, its standard error by the delta method, and the effective sample size.

    Args:
        log_weight: log w of each draw, shape (s, n), nats.

    Returns:
        Three tensors of shape (n,), of the kind of `log_weight`.
    """
    s = len(log_weight)
    log_sum = log_weight.logsumexp(0)
    ess = torch.exp(2 * log_sum - (2 * log_weight).logsumexp(0)).clamp(1, s)
    unbiased = s / (s - 1) if s > 1 else math.nan
    return log_sum - math.log(s), ((1 / ess - 1 / s) * unbiased).sqrt(), ess


def ess_in_words(estimate: LogMarginal) -> str:
    """The effective sizes, as summaries say them after the number of draws."""
    return f"of which effective: median {float(estimate.ess.median()):.1f}, least {float(estimate.ess.min()):.1f}"


def rounding_in_words(rounding: Tensor | None) -> str:
    """What products in a narrower dtype did, after a semicolon; nothing where there were none.

    Example:
        >>> rounding_in_words(torch.tensor([0.0, -0.25]))
        '; autocast moved log p(x) of the first 2 data by -0.125 nats on average, at most 0.250'
    """
    if rounding is None:
        return ""
    mean, most = float(rounding.mean()), float(rounding.abs().max())
    moved = f"{mean:+.3f} nats on average, at most {most:.3f}"
    return f"; autocast moved log p(x) of the first {len(rounding)} data by {moved}"


def outside_in_words(share: Tensor) -> str:
    """What summaries say of draws outside the support of a prior, after a comma; nothing where there are none."""
    if not bool((share > 0).any()):
        return ""
    return (
        f", of which {100 * float(share.mean()):.3g} % lie outside the support of prior or likelihood and have "
        f"weight zero (of a datum at most {100 * float(share.max()):.3g} %)"
    )


def errors_in_words(estimate: LogMarginal) -> str:
    """The standard errors of the data, as summaries say them."""
    error = estimate.std_error
    return f"standard error per datum: median {float(error.median()):.3f}, most {float(error.max()):.3f} nats"


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of `values`, shape (n,); NaN for a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def mean_over_data(values: Tensor) -> dict[str, float]:
    """The mean of `values`, shape (n,), and its standard error, as the tables and JSON hold them."""
    return {"mean": float(values.mean()), "std_error": standard_error(values)}


def mean_over_runs(values: Tensor) -> dict[str, float]:
    """The mean of s runs' values of the same n data, shape (s, n), and its standard error over runs and data both.

    Runs and data are two samples, crossed. With the variances σ² of the runs' means, of the data's means, and of what
    neither explains, the mean's is σ_s²/s + σ_n²/n + σ²/(s n), estimated without bias by those of an analysis of
    variance, where a part below zero counts as zero. One run has the standard error over the data.

    Example:
        >>> import torch
        >>> mean_over_runs(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
        {'mean': 2.0, 'std_error': 1.0}
    """
    s, n = values.shape
    if s == 1 or n == 1:
        return mean_over_data(values.flatten())
    of_runs, of_data = values.mean(1), values.mean(0)
    rest = values - of_runs.unsqueeze(1) - of_data + values.mean()
    both = float(rest.square().sum()) / ((s - 1) * (n - 1)) / (s * n)
    alone = [max(float(means.var()) / len(means) - both, 0.0) for means in (of_runs, of_data)]
    return {"mean": float(values.mean()), "std_error": math.sqrt(sum(alone) + both)}
