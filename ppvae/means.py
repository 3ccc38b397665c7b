"""What stands for a distribution in a picture or a table: its mean, or where that is not known a draw."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppvae.traces import leaf


def code_of(q_z: TorchDistribution) -> Tensor:
    """The mean of q(z|x), or of a discrete latent the most probable value; a draw where it is not in closed form."""
    try:
        return q_z.mode if leaf(q_z).support.is_discrete else q_z.mean
    except NotImplementedError:
        return q_z.sample()


def mean_of(distribution: TorchDistribution) -> Tensor:
    """E[x] of a likelihood; of a categorical pixel, its expected level.

    Raises:
        NotImplementedError: where the family has no mean in closed form (a flow).
    """
    base = leaf(distribution)
    if not isinstance(base, dist.Categorical):
        try:
            return distribution.mean
        except NotImplementedError as error:
            raise NotImplementedError(
                f"p(x|z) is a {type(base).__name__}, whose mean E[x|z] is not known: take draws of "
                "decode(z).sample(), or sample(num_samples)"
            ) from error
    levels = torch.arange(base.probs.shape[-1], device=base.probs.device, dtype=base.probs.dtype)
    return base.probs @ levels
