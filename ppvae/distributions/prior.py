"""Priors without parameters."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppvae._validate import check_count
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


class UniformCategorical(nn.Module):
    r"""Equal probabilities of all classes, the same for every context.

    .. math:: p(y) = 1 / c

    Args:
        num_classes: Number of classes c; values are integers from 0 to c - 1.

    Raises:
        ValueError: If ``num_classes`` is not a positive int.

    Example:
        >>> p_y = UniformCategorical(4)
        >>> p_y().probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    logits: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = check_count("num_classes", num_classes)
        self.register_buffer("logits", torch.full((num_classes,), -math.log(num_classes)), persistent=False)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(y), of batch shape ``()`` and event shape ``()``, whatever the context."""
        return dist.Categorical(logits=self.logits)

    def extra_repr(self) -> str:
        """Describes the size."""
        return f"num_classes={self.num_classes}"
