"""The evidence of a whole data set, for pairs whose latents all data share.

    log p(x_1, ..., x_n) ≈ log (1/s) Σ_i w_i,    w = p(x_1, ..., x_n, b) / q(b),  b ~ q(b)

There is one weight for all data. With a latent for each datum the evidence is the sum of `log_marginal`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ppvae._validate import check_count
from ppvae.evaluate.estimates import log_mean
from ppvae.evaluate.psis import PARETO_GOOD, ParetoWarning, pareto_k
from ppvae.evaluate.shared import shared_posterior
from ppvae.inputs import takes_data
from ppvae.result import Result
from ppvae.traces import sites


@dataclass(frozen=True, repr=False)
class LogEvidence(Result):
    """An estimate of log p(x_1, ..., x_n), one number for all data.

    Attributes:
        value: log p̂ of all data, nats: a lower bound in expectation.
        std_error: of `value` by the delta method; NaN for a single draw.
        ess: effective sample size (Σw)² / Σw² of the draws.
        pareto_k: k̂ of the weights: beyond 0.7 `value` is too low and `std_error` too small; NaN for less than 100.
        elbo: E_q[log w], nats.
        elbo_std_error: of `elbo`.
        num_samples: draws.
        num_data: n.
    """

    value: float
    std_error: float
    ess: float
    pareto_k: float
    elbo: float
    elbo_std_error: float
    num_samples: int
    num_data: int

    def summary(self) -> str:
        """One sentence for a person: the estimate, its error, the ELBO, and whether to believe it."""
        return (
            f"log p of all {self.num_data} data = {self.value:.3f} ± {self.std_error:.3f} nats; ELBO {self.elbo:.3f} ± "
            f"{self.elbo_std_error:.3f}; {self.num_samples} draws of the latents that they share, of which effective "
            f"{self.ess:.1f}; k̂ = {self.pareto_k:.2f}"
        )


@takes_data
def log_evidence(
    pair: nn.Module, *data: Any, num_samples: int = 1000, batch_size: int | None = None, seed: int = 0
) -> LogEvidence:
    """Estimates log p(x_1, ..., x_n) of all data by importance sampling from a guide of latents that they share.

    Bayesian weights, a common location: what lies outside the data plate. A scale, also that of a plate with more data
    than are given, is ignored; so are the factors of the guide.

    Args:
        pair: a model/guide pair, all of whose latents lie outside the data plate.
        data: its arguments, tensors or arrays of shape (n, ...), on any device; or one iterable of minibatches of them.
        num_samples: s, draws from the guide.
        batch_size: the most data that the model scores at once; by default 8,192, on a GPU 32,768.
        seed: of the draws; the global random state is left alone.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, a latent belongs to a datum, the guide is a point
            mass, or a weight is NaN or infinite.

    Warns:
        ParetoWarning: where k̂ > 0.7, which makes the estimate unreliable.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ppvae
        >>> from ppvae.evaluate import log_evidence
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("loc", dist.Normal(x.sum() / (len(x) + 1), (len(x) + 1) ** -0.5))
        >>> log_evidence(ppvae.Pair(model, guide), torch.tensor([1.0, 2.0, 0.0])).value  # exact, by the exact guide
        -4.82...
    """
    check_count("num_samples", num_samples)
    log_weight = torch.zeros(num_samples, 1, dtype=torch.float64)
    with shared_posterior(pair, data, seed=seed, batch_size=batch_size) as posterior:
        for i in range(num_samples):
            drawn = posterior.draw()
            log_q = sum(site.density().sum().double() for site in sites(drawn).values() if site.is_drawn)
            log_weight[i] = posterior.log_joint(drawn) - log_q
            if not float(log_weight[i]) < math.inf:
                raise ValueError(
                    f"the log importance weight of draw {i} is {float(log_weight[i]):g}: check the data and the "
                    "weights of the pair"
                )
        n = len(posterior)
    value, std_error, ess = (float(figure) for figure in log_mean(log_weight))
    k = float(pareto_k(log_weight))
    if k > PARETO_GOOD:
        warnings.warn(
            ParetoWarning(
                f"k̂ = {k:.2f} > {PARETO_GOOD}: the guide's tails are too light, so that the log evidence is likely too "
                "low and its standard error too small; a guide that is wider or closer to the posterior helps"
            ),
            stacklevel=3,
        )
    spread = float(log_weight.std() / math.sqrt(num_samples)) if num_samples > 1 else math.nan
    return LogEvidence(value, std_error, ess, k, float(log_weight.mean()), spread, num_samples, n)
