"""Event shapes: how they are written, and the parameter-free modules that move between them.

A net maps ``(..., *in_shape)`` to ``(..., *out_shape)``. The event shapes are fixed when the net is built
and are read from the right; whatever stands to their left (batch, particles, enumeration) is left alone.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ppvae._validate import InputError, check_dense, check_memory, check_number


def as_shape(value: int | Sequence[int], name: str) -> tuple[int, ...]:
    """Returns an event shape as a tuple, reading an int as a shape of one dimension.

    Args:
        value: A size, or a sequence of sizes; the empty sequence is the shape of a scalar.
        name: What the caller calls the value, for the error.

    Returns:
        The sizes as a tuple of ints.

    Raises:
        ValueError: If a size is not a positive int.

    Example:
        >>> as_shape(20, "in_shape"), as_shape([1, 28, 28], "in_shape")
        ((20,), (1, 28, 28))
    """
    shape = as_sizes(value, name)
    check_memory(name, value, 4.0 * math.prod(shape))
    return shape


def as_sizes(value: int | Sequence[int], name: str) -> tuple[int, ...]:
    """Returns sizes that stand one after another, as widths of layers do, reading an int as one of them.

    Args:
        value: A size, or a sequence of sizes.
        name: What the caller calls the value, for the error.

    Raises:
        ValueError: If a size is not a positive int.

    Example:
        >>> as_sizes([256] * 12, "hidden_dims") == (256,) * 12
        True
    """
    sizes = (value,) if isinstance(value, int) else value
    is_sequence = isinstance(sizes, Sequence) and not isinstance(sizes, str)
    if not is_sequence or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"{name} must be a positive int or a sequence of positive ints, got {value!r}")
    check_memory(name, value, 4.0 * max(sizes, default=0))
    return tuple(sizes)


def lead_dims(x: Tensor, in_shape: tuple[int, ...]) -> int:
    """Returns how many dimensions of ``x`` lie to the left of its event dimensions.

    Args:
        x: A tensor, ``(..., *in_shape)``.
        in_shape: The event shape that ``x`` must end in.

    Returns:
        The number of leading dimensions.

    Raises:
        ValueError: If ``x`` does not end in ``in_shape``: a reshape would scramble it in silence.

    Example:
        >>> import torch
        >>> lead_dims(torch.zeros(5, 7, 1, 28, 28), (1, 28, 28))
        2
    """
    lead = x.dim() - len(in_shape)
    if x.shape[lead:] != in_shape:
        raise ValueError(f"expected an input of shape (..., {str(in_shape)[1:]}, got {tuple(x.shape)}")
    return lead


def check_input(net: nn.Module, x: object, in_shape: tuple[int, ...], name: str = "x") -> None:
    """Says what a net takes, where it has failed on something else.

    Args:
        net: The net.
        x: What it was given.
        in_shape: Event shape of what it takes.
        name: What the net calls it, for the error.

    Raises:
        TypeError: If ``x`` is no dense tensor.
        ValueError: If it does not end in ``in_shape``, or is of another dtype or device than the parameters.
    """
    called = f"{name} of {type(net).__name__}"
    if not isinstance(x, Tensor):
        raise TypeError(f"{called} must be a tensor, got {type(x).__name__}")
    check_dense(called, x)
    if x.shape[max(x.dim() - len(in_shape), 0) :] != in_shape:
        raise InputError(f"{called} must have shape (..., {str(in_shape)[1:]}, got {tuple(x.shape)}")
    for parameter in net.parameters():
        for what, got, wanted in (("dtype", x.dtype, parameter.dtype), ("device", x.device, parameter.device)):
            if got != wanted:
                raise InputError(f"{called} must have the {what} of the parameters, {wanted}, got {got}")


class Net(nn.Sequential):
    """Layers between two event shapes, which say what they take where something else does not fit.

    Attributes:
        in_shape: Event shape of the input.
        out_shape: Event shape of the output.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., *in_shape)`` to ``(..., *out_shape)``."""
        try:
            return super().forward(x)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            check_input(self, x, self.in_shape)
            raise


class Reshape(nn.Module):
    """Reshapes the event dimensions and keeps the leading ones.

    Args:
        in_shape: Event shape of the input; an int means one dimension.
        out_shape: Event shape of the output, of as many elements.

    Raises:
        ValueError: If the shapes do not have the same number of elements.

    Example:
        >>> import torch
        >>> Reshape((1, 8, 8), 64)(torch.zeros(3, 5, 1, 8, 8)).shape
        torch.Size([3, 5, 64])
    """

    def __init__(self, in_shape: int | Sequence[int], out_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.in_shape = as_shape(in_shape, "in_shape")
        self.out_shape = as_shape(out_shape, "out_shape")
        if math.prod(self.in_shape) != math.prod(self.out_shape):
            raise ValueError(f"out_shape {self.out_shape} must have as many elements as in_shape {self.in_shape}")

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., *in_shape)`` to ``(..., *out_shape)``."""
        return x.reshape(x.shape[: lead_dims(x, self.in_shape)] + self.out_shape)

    def extra_repr(self) -> str:
        """Describes the shapes."""
        return f"{self.in_shape} -> {self.out_shape}"


def between(in_shape: tuple[int, ...], layers: Sequence[nn.Module], out_shape: tuple[int, ...]) -> list[nn.Module]:
    """Returns layers on vectors with the reshapes that make them a net between two event shapes.

    Args:
        in_shape: Event shape of the net's input.
        layers: Layers from ``(..., prod(in_shape))`` to ``(..., prod(out_shape))``.
        out_shape: Event shape of the net's output.

    Returns:
        The layers, with a reshape on each side whose event shape is not one vector.

    Example:
        >>> between((3,), [nn.Linear(3, 40)], (2, 20))
        [Linear(in_features=3, out_features=40, bias=True), Reshape((40,) -> (2, 20))]
    """
    flat_in, flat_out = (math.prod(in_shape),), (math.prod(out_shape),)
    return [
        *([Reshape(in_shape, flat_in)] if in_shape != flat_in else []),
        *layers,
        *([Reshape(flat_out, out_shape)] if out_shape != flat_out else []),
    ]


class Batched(nn.Module):
    """Lets a net that wants exactly one batch dimension accept any number of leading ones.

    Convolutions and batch normalisation are such nets, and so are most image models written elsewhere: the
    leading dimensions are flattened to one before the net and restored after it, so that batch statistics
    are those of all the leading dimensions together.

    Args:
        net: A module from ``(n, *in_shape)`` to ``(n, *out_shape)``.
        in_shape: Event shape of the input; an int means one dimension.
        out_shape: Event shape of the output; an int means one dimension.

    Raises:
        ValueError: If a shape is not a positive int or a sequence of them.
        TypeError: If ``net`` is not a module.

    Example:
        >>> import torch
        >>> net = Batched(nn.Conv2d(3, 8, 3, padding=1), (3, 32, 32), (8, 32, 32))
        >>> net(torch.zeros(5, 2, 3, 32, 32)).shape
        torch.Size([5, 2, 8, 32, 32])
    """

    def __init__(self, net: nn.Module, in_shape: int | Sequence[int], out_shape: int | Sequence[int]) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
        self.net = net
        self.in_shape = as_shape(in_shape, "in_shape")
        self.out_shape = as_shape(out_shape, "out_shape")

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(..., *in_shape)`` to ``(..., *out_shape)``."""
        lead = x.shape[: lead_dims(x, self.in_shape)]
        return self.net(x.reshape(-1, *self.in_shape)).reshape(lead + self.out_shape)


class Rescale(nn.Module):
    r"""Maps a tensor of any shape and dtype affinely, without parameters.

    .. math:: y = x \cdot \text{scale} + \text{shift}

    Integer and boolean inputs become floats of the default dtype; floats keep theirs.

    Args:
        scale: The factor.
        shift: The summand.

    Raises:
        ValueError: If ``scale`` or ``shift`` is not a finite number.

    Example:
        >>> import torch
        >>> to_unit = Rescale(2 / 255, -1.0)  # pixel levels 0 … 255 to [-1, 1]
        >>> to_unit(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """

    def __init__(self, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        for name, value in (("scale", scale), ("shift", shift)):
            check_number(name, value)
        # A Python float, never an int, promotes an integer tensor to the default float dtype.
        self.scale, self.shift = float(scale), float(shift)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``(...)`` to ``(...)``."""
        return x * self.scale + self.shift

    def extra_repr(self) -> str:
        """Describes the map."""
        return f"scale={self.scale:g}, shift={self.shift:g}"


class Log1p(nn.Module):
    """log(1 + x): counts of very different sizes, as an encoder takes them.

    Example:
        >>> import torch
        >>> Log1p()(torch.tensor([0.0, 999.0]))
        tensor([0.0000, 6.9078])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logarithms."""
        return x.log1p()
