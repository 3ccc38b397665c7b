"""How well data are reconstructed from their codes: E_q[log p(x|z)], which needs no density of the guide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppvae._validate import check_count
from ppvae.evaluate.sites import num_observed
from ppvae.inputs import takes_data
from ppvae.result import Result
from ppvae.sampling.posterior_draws import posterior_sampler


@dataclass(frozen=True, repr=False)
class ExpectedLogLikelihood(Result):
    """E_q[log p(x|z)] of each datum: no bound of log p(x), since it leaves out what the code costs.

    Attributes:
        values: (n,), nats, float64 on the CPU.
        points: the continuous latents to which the guide gives one value, so that there is no ELBO.
        num_dims: elements of a datum that the model scores.
    """

    values: Tensor
    points: tuple[str, ...]
    num_dims: float

    def summary(self) -> str:
        """The mean, and what there is to know besides."""
        mean = f"E log p(x|z) = {float(self.values.mean()):.3f} nats over {len(self.values)} data"
        if not self.points:
            return mean
        return f"{mean}; the guide gives {list(self.points)} one value, so that there is no ELBO"


@takes_data
def expected_log_likelihood(pair: nn.Module, *data: Any, num_samples: int = 1, seed: int = 0) -> ExpectedLogLikelihood:
    """Estimates E_q[log p(x|z)] of each datum, also with a deterministic encoder.

    Args:
        pair: any model/guide pair whose latents the guide samples.
        data: its arguments, tensors of shape (n, ...), on any device.
        num_samples: draws from the guide per datum.
        seed: of the draws; the global random state is left alone.

    Returns:
        The estimates.

    Raises:
        TypeError: where an argument is of the wrong kind.
        ValueError: where the pair or the data break the contract, naming the argument or the site.

    Example:
        >>> import torch
        >>> from ppvae.models import PPCA
        >>> expected_log_likelihood(PPCA(8, 2), torch.randn(100, 8)).values.shape
        torch.Size([100])
    """
    check_count("num_samples", num_samples)
    with posterior_sampler(pair, data, seed=seed) as posterior:
        values = torch.zeros(len(posterior), dtype=torch.float64)
        for index, part in posterior.parts(num_samples):
            log_p = part.log_likelihood(part.draw(num_samples)[0])
            values[index] = sum(value.double().mean(0).cpu() for value in log_p.values())
        points = posterior.sampler.density.points
    return ExpectedLogLikelihood(values, points, num_observed(pair, data, given=()))
