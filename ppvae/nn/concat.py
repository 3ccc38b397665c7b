"""Several inputs side by side."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppvae.nn.shapes import as_shape, lead_dims


class ConcatInputs(nn.Module):
    """Lets a net of one vector take several inputs, flattened and side by side; leading dimensions broadcast.

    Args:
        in_shapes: Event shape of each input; an int means one dimension.
        net: A module from ``(..., d)``, with as many elements as all inputs together.

    Attributes:
        out_shape: Event shape of the output, where the net declares it.

    Raises:
        ValueError: If there is no input, or a shape is not a positive int or a sequence of them.
        TypeError: If ``net`` is not a module.

    Example:
        >>> from ppvae.nn import MLP
        >>> net = ConcatInputs((20, (1, 28, 28)), MLP(20 + 784, (200,), (2, 10)))
        >>> net(torch.zeros(5, 128, 20), torch.zeros(128, 1, 28, 28)).shape
        torch.Size([5, 128, 2, 10])
    """

    def __init__(self, in_shapes: Sequence[int | Sequence[int]], net: nn.Module) -> None:
        super().__init__()
        if not isinstance(in_shapes, Sequence) or isinstance(in_shapes, str):
            raise TypeError(f"in_shapes must be a sequence of event shapes, got {in_shapes!r}")
        self.in_shapes = [as_shape(shape, f"in_shapes[{i}]") for i, shape in enumerate(in_shapes)]
        if not self.in_shapes:
            raise ValueError("in_shapes must hold the shape of at least one input, got none")
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
        dim = sum(math.prod(shape) for shape in self.in_shapes)
        if getattr(net, "in_shape", (dim,)) != (dim,):
            raise ValueError(f"net must take vectors of {dim} elements, as the inputs have, got {net.in_shape}")
        self.net = net
        if hasattr(net, "out_shape"):  # what is not declared must not look as if it were
            self.out_shape = net.out_shape

    def forward(self, *inputs: Tensor) -> Tensor:
        """Maps one ``(..., *in_shape)`` for each input to ``(..., *out_shape)``."""
        if len(inputs) != len(self.in_shapes):
            raise ValueError(f"expected {len(self.in_shapes)} inputs, got {len(inputs)}")
        leads = [x.shape[: lead_dims(x, shape)] for x, shape in zip(inputs, self.in_shapes, strict=True)]
        lead = torch.broadcast_shapes(*leads)
        flat = [x.reshape(*own, -1).expand(*lead, -1) for x, own in zip(inputs, leads, strict=True)]
        return self.net(torch.cat(flat, -1))
