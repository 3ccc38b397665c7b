"""A point: what a deterministic encoder gives for the code of a datum."""

import pyro.distributions as dist
from torch import Tensor, nn

from ppvae.distributions.parameters import full_precision, resolve_event_dim


class ConditionalDelta(nn.Module):
    r"""A point mass at what a net makes of a context: z = f(c), without a density.

    As a posterior it is the encoder of a deterministic autoencoder. A continuous z then has no log q(z|x), hence no
    ELBO, and `elbo` and `log_marginal` say so; `ppvae.objectives.AE`, `RAE`, `WAE` and `AAE` need none, nor does
    `log_marginal(..., method=Annealed(start="prior"))`.

    Args:
        net: A module from the context to the point, ``(..., *event_shape)``.
        event_dim: Number of event dimensions; None reads it off the net's ``out_shape``, and is 1 for a net
            that declares none.

    Raises:
        ValueError: If ``event_dim`` is negative or beyond the net's ``out_shape``.
        TypeError: If ``net`` is not a module.

    Example:
        >>> import torch
        >>> from ppvae.nn import MLP
        >>> q_z_given_x = ConditionalDelta(MLP(784, (400,), 20))
        >>> q_z_given_x(torch.zeros(128, 784)).mean.shape
        torch.Size([128, 20])
    """

    def __init__(self, net: nn.Module, *, event_dim: int | None = None) -> None:
        super().__init__()
        self.event_dim = resolve_event_dim(net, num_params=None, event_dim=event_dim)
        self.net = net

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns the point mass, of batch shape ``(...)`` and ``event_dim`` event dimensions."""
        return dist.Delta(full_precision(self.net(*context)), event_dim=self.event_dim)
