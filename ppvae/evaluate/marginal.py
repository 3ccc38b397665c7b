"""The ELBO and the marginal likelihood log p(x), per datum, by importance sampling from the guide.

    ELBO(x)  = E_q[log w],              w = p(x, z) / q(z|x),  z ~ q(z|x)
    log p(x) ≈ log (1/s) Σ_i w_i        (Burda et al. 2016, "Importance weighted autoencoders", 1509.00519)

Both are lower bounds on log p(x) in expectation, in nats, and higher is better; the second rises to log p(x)
with s. Scales (a KL weight) and the guide's auxiliary factors are ignored: this is the likelihood of the
generative model, whatever objective trained it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppvae.infer.importance import Draws, importance_draws


@dataclass(frozen=True)
class Elbo:
    """The evidence lower bound of each datum, and its two terms.

    Attributes:
        values: E_q[log p(x, z) − log q(z|x)], shape (n,), nats.
        reconstruction: E_q[log p(x|z)], (n,), nats.
        kl: E_q[log q(z|x) − log p(z)] of each latent site, (n,), nats.
        std_error: standard error of `values` from the draws, (n,); NaN for a single draw.
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


@dataclass(frozen=True)
class LogMarginal:
    """An estimate of log p(x) for each datum.

    Attributes:
        values: log p̂(x), shape (n,), nats.
        std_error: standard error of `values` by the delta method, (n,), nats; NaN for a single draw.
        ess: effective sample size (Σw)² / Σw², (n,), between 1 and `num_samples`.
        num_samples: draws per datum.
        num_dims: elements of one datum, for bits per dimension.
    """

    values: Tensor
    std_error: Tensor
    ess: Tensor
    num_samples: int
    num_dims: int

    def mean(self) -> float:
        """The mean over the data, nats per datum."""
        return float(self.values.mean())

    def mean_std_error(self) -> float:
        """Standard error of the mean: the spread over the data, which includes that of the estimates."""
        return standard_error(self.values)

    def bits_per_dim(self) -> float:
        """−mean log p(x) / (d ln 2), bits per element of a datum."""
        return -self.mean() / (self.num_dims * math.log(2.0))

    def summary(self) -> str:
        """One paragraph for a person: the mean, its error, and how well the weights behaved."""
        n, s = len(self.values), self.num_samples
        return (
            f"log p(x) = {self.mean():.3f} ± {self.mean_std_error():.3f} nats "
            f"({self.bits_per_dim():.4f} bits per dimension), mean ± standard error over {n} data; "
            f"{s} importance samples per datum, of which effective: median {float(self.ess.median()):.1f}, "
            f"least {float(self.ess.min()):.1f}; standard error per datum: "
            f"median {float(self.std_error.median()):.3f}, most {float(self.std_error.max()):.3f} nats"
        )


def elbo(
    pair: nn.Module,
    *data: Any,
    num_samples: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Elbo:
    """Estimates the ELBO of each datum and its terms, E_q[log p(x|z)] − Σ KL(q ‖ p).

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), on any device.
        num_samples: draws from the guide per datum.
        batch_size: the most data scored at once; by default what a memory budget allows.
        seed: of the draws; the global random state is left alone.
        progress: whether to show a progress bar.

    Returns:
        The estimates, as float64 tensors on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, naming the argument or the site.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> terms = ppvae.elbo(PPCA(8, 2), torch.randn(100, 8), num_samples=10)
        >>> terms.values.shape
        torch.Size([100])
    """
    sums: list[dict[str, Tensor]] = []
    starts: list[int] = []
    for draws in _draws(pair, data, num_samples, batch_size, seed, progress):
        log_weight = draws.log_weight().double()
        terms = {"": log_weight, "square": log_weight**2, "log_likelihood": draws.log_likelihood.double()}
        terms |= {f"kl_{site}": value.double() for site, value in draws.kl().items()}
        block = {name: value.sum(0) for name, value in terms.items()}
        if starts and starts[-1] == draws.start:
            sums[-1] = {name: sums[-1][name] + value for name, value in block.items()}
        else:
            starts.append(draws.start)
            sums.append(block)
    means = {name: torch.cat([block[name] for block in sums]).cpu() / num_samples for name in sums[0]}
    values = means.pop("")
    unbiased = num_samples / (num_samples - 1) if num_samples > 1 else math.nan
    variance = (means.pop("square") - values**2).clamp_min(0) * unbiased
    reconstruction = means.pop("log_likelihood")
    kl = {name.removeprefix("kl_"): value for name, value in means.items()}
    return Elbo(values, reconstruction, kl, (variance / num_samples).sqrt(), num_samples)


def log_marginal(
    pair: nn.Module,
    *data: Any,
    num_samples: int = 1000,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> LogMarginal:
    """Estimates log p(x) of each datum by importance sampling from the guide.

    log p̂(x) = log (1/s) Σ_i p(x, z_i) / q(z_i|x), z_i ~ q(z|x): a lower bound in expectation that rises to
    log p(x) with s (Burda et al. 2016, arXiv 1509.00519). Latents may be continuous or discrete.

    Args:
        pair: any model/guide pair.
        data: its arguments, tensors of shape (n, ...), on any device.
        num_samples: s, draws from the guide per datum; exactly that many, whatever the chunking.
        batch_size: the most data scored at once; by default what a memory budget allows.
        seed: of the draws; the global random state is left alone.
        progress: whether to show a progress bar.

    Returns:
        The estimates with their standard errors and effective sample sizes, as float64 tensors on the CPU.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, or a weight is NaN, naming what is wrong.

    Example:
        >>> import torch, ppvae
        >>> from ppvae.models import PPCA
        >>> estimate = ppvae.log_marginal(PPCA(8, 2), torch.randn(100, 8), num_samples=50)
        >>> estimate.values.shape
        torch.Size([100])
    """
    sums: list[_WeightSum] = []
    starts: list[int] = []
    for draws in _draws(pair, data, num_samples, batch_size, seed, progress):
        log_weight = draws.log_weight().double()
        if log_weight.isnan().any():
            datum = draws.start + int(log_weight.isnan().any(0).nonzero()[0])
            raise ValueError(f"the importance weight of datum {datum} is NaN: check its values and the weights")
        if not starts or starts[-1] != draws.start:
            starts.append(draws.start)
            sums.append(_WeightSum.empty(log_weight))
        sums[-1].add(log_weight)
    log_sum = torch.cat([block.log_sum() for block in sums]).cpu()
    log_sum_squares = torch.cat([block.log_sum_squares() for block in sums]).cpu()
    ess = torch.exp(2 * log_sum - log_sum_squares)
    unbiased = num_samples / (num_samples - 1) if num_samples > 1 else math.nan
    relative_variance = (1 / ess - 1 / num_samples).clamp_min(0) * unbiased
    return LogMarginal(
        values=log_sum - math.log(num_samples),
        std_error=relative_variance.sqrt(),
        ess=ess,
        num_samples=num_samples,
        num_dims=next(t for t in data if t is not None)[0].numel(),
    )


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of `values`, shape (n,); NaN for a single one."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


@dataclass
class _WeightSum:
    """Σ w and Σ w² of each datum, kept relative to the largest weight so far so that neither overflows."""

    largest: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, log_weight: Tensor) -> _WeightSum:
        zeros = torch.zeros_like(log_weight[0])
        return cls(torch.full_like(zeros, -math.inf), zeros, zeros)

    def add(self, log_weight: Tensor) -> None:
        largest = torch.maximum(self.largest, log_weight.amax(0))
        anchor = largest.clamp_min(torch.finfo(largest.dtype).min)  # all weights zero: exp(−inf − finite) = 0
        shrink = torch.exp(self.largest - anchor)
        weight = torch.exp(log_weight - anchor)
        self.total = self.total * shrink + weight.sum(0)
        self.squares = self.squares * shrink**2 + (weight**2).sum(0)
        self.largest = largest

    def log_sum(self) -> Tensor:
        return self.largest + self.total.log()

    def log_sum_squares(self) -> Tensor:
        return 2 * self.largest + self.squares.log()


def _draws(
    pair: nn.Module, data: Any, num_samples: int, batch_size: int | None, seed: int, progress: bool
) -> Iterator[Draws]:
    draws = importance_draws(pair, data, num_samples=num_samples, batch_size=batch_size, seed=seed)
    if not progress:
        yield from draws
        return
    from tqdm import tqdm

    total = num_samples * len(next(t for t in data if t is not None))
    with tqdm(total=total, unit="draw", unit_scale=True, desc="log p(x)", leave=False) as bar:
        for block in draws:
            yield block
            bar.update(block.log_likelihood.numel())
