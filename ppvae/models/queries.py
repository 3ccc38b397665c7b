"""The questions that every model with one latent z answers, from its three conditionals alone."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent


class VAEQueries(nn.Module):
    """Encoding, decoding and sampling, for a model with modules `p_z`, `p_x_given_z` and `q_z_given_x`.

    The queries run the modules as they stand: call `.eval()` first where there is dropout or batch norm.
    """

    p_z: nn.Module
    p_x_given_z: nn.Module
    q_z_given_x: nn.Module

    def encode(self, x: Tensor) -> TorchDistribution:
        """q(z|x) for x of shape (..., *event): its `.mean` is the code of x, its `.sample()` a draw."""
        return self.q_z_given_x(x)

    def decode(self, z: Tensor) -> TorchDistribution:
        """p(x|z) for z of shape (..., k), or (..., *event) where the prior has more event dims."""
        return self.p_x_given_z(z)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|z] at the code of x, shape (..., *event)."""
        return mean_of(self.decode(code_of(self.encode(x))))

    @torch.no_grad()
    def sample(self, num_samples: int, *, mean: bool = False) -> Tensor:
        """Draws from the model: z ~ p(z), then x ~ p(x|z).

        Args:
            num_samples: n, how many.
            mean: whether to return E[x|z] in place of a draw of x, as most papers' pictures do.

        Returns:
            Data of shape (n, *event).
        """
        p_x = self.decode(self.p_z().sample((num_samples,)))
        return mean_of(p_x) if mean else p_x.sample()

    @torch.no_grad()
    def interpolate(self, x_from: Tensor, x_to: Tensor, num_steps: int = 9) -> Tensor:
        """E[x|z] along the straight line between the codes of two data.

        Args:
            x_from: data (..., *event).
            x_to: as many data (..., *event).
            num_steps: points on each line, both ends included.

        Returns:
            Data of shape (..., num_steps, *event).
        """
        return mean_of(self.decode(line_between(self.encode(x_from), self.encode(x_to), num_steps)))


def code_of(q_z: TorchDistribution) -> Tensor:
    """The mean of q(z|x), or a draw where the family has no mean in closed form."""
    try:
        return q_z.mean
    except NotImplementedError:
        return q_z.sample()


def mean_of(distribution: TorchDistribution) -> Tensor:
    """E[x] of a likelihood; of a categorical pixel, its expected level.

    Raises:
        NotImplementedError: where the family has no mean in closed form (a flow).
    """
    base = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, dist.Categorical):
        try:
            return distribution.mean
        except NotImplementedError as error:
            raise NotImplementedError(
                f"p(x|z) is a {type(distribution).__name__}, whose mean E[x|z] is not known: take draws of "
                "decode(z).sample(), or sample(num_samples)"
            ) from error
    levels = torch.arange(base.probs.shape[-1], device=base.probs.device, dtype=base.probs.dtype)
    return base.probs @ levels


def line_between(q_from: TorchDistribution, q_to: TorchDistribution, num_steps: int) -> Tensor:
    """Points on the straight line between two codes, both ends included: (..., num_steps, *event)."""
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, for the two ends, got {num_steps!r}")
    dims = len(q_from.event_shape)
    z_from, z_to = (code_of(q).unsqueeze(-1 - dims) for q in (q_from, q_to))
    t = torch.linspace(0, 1, num_steps, device=z_from.device, dtype=z_from.dtype).reshape(-1, *[1] * dims)
    return torch.lerp(z_from, z_to, t)
