"""Priors without parameters."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae.nn import as_shape


class StandardNormal(nn.Module):
    r"""The standard normal, the same for every context.

    .. math:: p(z) = \mathcal{N}(z; 0, I)

    Args:
        event_shape: Shape of one ``z``; an int means one dimension.

    Raises:
        ValueError: If ``event_shape`` is not a positive int or a sequence of them.

    Example:
        >>> p_z = StandardNormal(20)
        >>> p_z().event_shape
        torch.Size([20])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, event_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape, "event_shape")
        # Buffers follow the module to a device and dtype; constants have no place in its state.
        self.register_buffer("loc", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("scale", torch.ones(self.event_shape), persistent=False)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(z), of batch shape ``()`` and event shape ``event_shape``, whatever the context."""
        return dist.Normal(self.loc, self.scale).to_event(len(self.event_shape))

    def extra_repr(self) -> str:
        """Describes the shape."""
        return f"event_shape={self.event_shape}"
