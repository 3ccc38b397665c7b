"""What the estimators of the ELBO and of log p(x) return: a value for each datum, and the evidence for it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppvae.evaluate.psis import PARETO_GOOD, PARETO_SAMPLES


@dataclass(frozen=True)
class Elbo:
    """The evidence lower bound of each datum, and its two terms.

    Attributes:
        values: E_q[log p(x, z) − log q(z|x)], shape (n,), nats.
        reconstruction: E_q[log p(x|z)], (n,), nats.
        kl: E_q[log q(z|x) − log p(z)] of each latent site, (n,), nats.
        std_error: standard error of `values` from the draws, (n,), nats; NaN for a single draw, or where a draw has
            weight zero (`values` is then −inf).
        num_samples: draws per datum.
    """

    values: Tensor
    reconstruction: Tensor
    kl: dict[str, Tensor]
    std_error: Tensor
    num_samples: int

    def mean(self) -> float:
        """The mean over the data, nats per datum."""
        return float(self.values.mean())

    def mean_std_error(self) -> float:
        """Standard error of the mean: the spread over the data, which includes that of the draws."""
        return standard_error(self.values)

    def summary(self) -> str:
        """One sentence for a person: the mean, its error, and the terms it is made of."""
        kl = "".join(f" − KL {site} {float(value.mean()):.3f}" for site, value in self.kl.items())
        return (
            f"ELBO = {self.mean():.3f} ± {self.mean_std_error():.3f} nats, mean ± standard error over "
            f"{len(self.values)} data; reconstruction {float(self.reconstruction.mean()):.3f}{kl}; "
            f"{self.num_samples} draws per datum"
        )


@dataclass(frozen=True)
class Estimate(ABC):
    """An estimate of log p(x) for each datum, whatever the method.

    Attributes:
        values: log p̂(x), shape (n,), nats.
        std_error: standard error of `values` by the delta method, (n,), nats; NaN for a single draw.
        ess: effective sample size (Σw)² / Σw² of the draws, (n,). Where every weight is zero, `values` is −inf, and
            `std_error` and `ess` are NaN.
        num_dims: elements of one datum that the model scores, for bits per dimension; their mean over the data where
            masks leave some out.
    """

    values: Tensor
    std_error: Tensor
    ess: Tensor
    num_dims: float

    def mean(self) -> float:
        """The mean over the data, nats per datum."""
        return float(self.values.mean())

    def mean_std_error(self) -> float:
        """Standard error of the mean: the spread over the data, which includes that of the estimates."""
        return standard_error(self.values)

    def bits_per_dim(self) -> float:
        """−mean log p(x) / (d ln 2), bits per element of a datum."""
        return -self.mean() / (self.num_dims * math.log(2.0))

    @abstractmethod
    def summary(self) -> str:
        """One paragraph for a person: the mean, its error, and how well the weights behaved."""

    def _in_words(self) -> str:
        return (
            f"log p(x) = {self.mean():.3f} ± {self.mean_std_error():.3f} nats "
            f"({self.bits_per_dim():.4f} bits per dimension), mean ± standard error over {len(self.values)} data"
        )


@dataclass(frozen=True)
class LogMarginal(Estimate):
    """An estimate of log p(x) by importance sampling, and the evidence for it; see `Estimate` for the other attributes.

    Attributes:
        pareto_k: k̂, (n,): beyond 0.7 `values` is too low and `std_error` too small, by how much is unknown. −inf
            where the weights are all alike, NaN for less than 100 samples, see `ppvae.evaluate.pareto_k`.
        bound: the lower bound with K samples in place of all of them, (n,), nats, for K = 1, 2, 5, 10, 20, ... and
            `num_samples`, where it is `values`. Where it still rises at the end, so would `values` with more samples.
        num_samples: draws per datum.
    """

    pareto_k: Tensor
    bound: dict[int, Tensor]
    num_samples: int

    def num_unreliable(self) -> int:
        """How many data have k̂ > 0.7."""
        return int((self.pareto_k > PARETO_GOOD).sum())

    def summary(self) -> str:
        """One paragraph for a person: the mean, its error, and how well the weights behaved."""
        if self.num_samples == 1:
            return f"{self._in_words()}; 1 importance sample per datum, exact where all latents are summed over"
        bound = ", ".join(f"{float(self.bound[k].mean()):.3f} (K = {k})" for k in list(self.bound)[-4:])
        return (
            f"{self._in_words()}; {self.num_samples} importance samples per datum, of which effective: "
            f"median {float(self.ess.median()):.1f}, least {float(self.ess.min()):.1f}; standard error per datum: "
            f"median {float(self.std_error.median()):.3f}, most {float(self.std_error.max()):.3f} nats; "
            f"bound with K samples: {bound}; {self.verdict()}"
        )

    def verdict(self) -> str:
        """What k̂ says of the estimate."""
        if self.num_samples < PARETO_SAMPLES:
            return f"no k̂, which takes at least {PARETO_SAMPLES} samples"
        n, bad, most = len(self.values), self.num_unreliable(), float(self.pareto_k.max())
        if not bad:
            return f"k̂ ≤ {PARETO_GOOD} for all data, most {most:.2f}"
        return (
            f"k̂ > {PARETO_GOOD} for {bad} of {n} data, most {most:.2f}: the guide's tails are too light for "
            "them, so that their log p(x) is likely too low and its standard error too small; a guide that is wider or "
            'closer to the posterior helps, and so does method="annealed"'
        )


@dataclass(frozen=True)
class AnnealedLogMarginal(Estimate):
    """An estimate of log p(x) by annealed importance sampling; the draws of `Estimate` are chains.

    Attributes:
        acceptance: mean probability with which a move was accepted, (n,); NaN for a single temperature.
        num_chains: per datum.
        num_temperatures: steps from the start to the posterior.
    """

    acceptance: Tensor
    num_chains: int
    num_temperatures: int

    def summary(self) -> str:
        """One paragraph for a person: the mean, its error, and how well the chains behaved."""
        return (
            f"{self._in_words()}; {self.num_chains} chains of {self.num_temperatures} temperatures per datum, of which "
            f"effective: median {float(self.ess.median()):.1f}, least {float(self.ess.min()):.1f}; moves accepted: "
            f"mean {float(self.acceptance.mean()):.2f}, least {float(self.acceptance.min()):.2f}; standard error per "
            f"datum: median {float(self.std_error.median()):.3f}, most {float(self.std_error.max()):.3f} nats"
        )


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of `values`, shape (n,); NaN for a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def mean_over_data(values: Tensor) -> dict[str, float]:
    """The mean of `values`, shape (n,), and its standard error, as the tables and JSON hold them."""
    return {"mean": float(values.mean()), "std_error": standard_error(values)}


class Moments:
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
