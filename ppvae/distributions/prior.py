"""Priors without nets."""

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
        event_shape: Shape of one ``y``, by default ``()``; an int means one dimension.

    Raises:
        ValueError: If ``num_classes`` is not a positive int, or ``event_shape`` no sequence of them.

    Example:
        >>> p_y = UniformCategorical(4)
        >>> p_y().probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    logits: Tensor

    def __init__(self, num_classes: int, event_shape: int | Sequence[int] = ()) -> None:
        super().__init__()
        self.num_classes, self.event_shape = (
            check_count("num_classes", num_classes),
            as_shape(event_shape, "event_shape"),
        )
        logits = torch.full((*self.event_shape, num_classes), -math.log(num_classes))
        self.register_buffer("logits", logits, persistent=False)

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(y), of batch shape ``()`` and event shape ``event_shape``, whatever the context."""
        return _categorical(self.logits)

    def extra_repr(self) -> str:
        """Describes the sizes."""
        return f"num_classes={self.num_classes}, event_shape={self.event_shape}"


class CategoricalPrior(nn.Module):
    r"""Learned probabilities of all classes, independent for each element, the same for every context.

    .. math:: p(y) = \prod_i \mathrm{softmax}(\ell_i)_{y_i}

    They start equal.

    Args:
        num_classes: Number of classes c; values are integers from 0 to c - 1.
        event_shape: Shape of one ``y``, by default ``()``; an int means one dimension.

    Raises:
        ValueError: If ``num_classes`` is not a positive int, or ``event_shape`` no sequence of them.

    Example:
        >>> p_k = CategoricalPrior(512, 16)
        >>> p_k().sample((5,)).shape
        torch.Size([5, 16])
    """

    def __init__(self, num_classes: int, event_shape: int | Sequence[int] = ()) -> None:
        super().__init__()
        self.num_classes, self.event_shape = (
            check_count("num_classes", num_classes),
            as_shape(event_shape, "event_shape"),
        )
        self.logits = nn.Parameter(torch.zeros(*self.event_shape, num_classes))

    def forward(self, *context: Tensor) -> dist.TorchDistribution:
        """Returns p(y), of batch shape ``()`` and event shape ``event_shape``, whatever the context."""
        return _categorical(self.logits)

    def extra_repr(self) -> str:
        """Describes the sizes."""
        return f"num_classes={self.num_classes}, event_shape={self.event_shape}"


def _categorical(logits: Tensor) -> dist.TorchDistribution:
    """A categorical variable of every element of the event ``(*event_shape, c)``."""
    categorical = dist.Categorical(logits=logits)
    return categorical.to_event(logits.dim() - 1) if logits.dim() > 1 else categorical
