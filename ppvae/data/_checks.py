"""Argument checks shared by the data modules."""

from numbers import Integral

import torch
from torch import Tensor


def check_whole(name: str, value: object, *, at_least: int) -> None:
    """Refuse anything but a whole number that is large enough.

    Args:
        name: the argument's name, for the message.
        value: what was passed.
        at_least: the smallest number that makes sense.

    Raises:
        TypeError: if `value` is not an integer (a bool is not one).
        ValueError: if `value` is too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")


def check_tensor(name: str, x: object) -> Tensor:
    """Refuse anything but a tensor.

    Args:
        name: what to call the tensor in the message.
        x: what was passed.

    Returns:
        What was passed.

    Raises:
        TypeError: if `x` is something else.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}; "
            "convert an array with torch.from_numpy, unpack a split with *"
        )
    return x


def check_intensities(name: str, x: object) -> None:
    """Refuse anything but a floating tensor with values in [0, 1].

    Args:
        name: what to call the tensor in the message.
        x: what was passed.

    Raises:
        TypeError: if `x` is not a floating tensor.
        ValueError: if a value lies outside [0, 1] or is NaN.
    """
    x = check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(f"{name} must hold floating intensities in [0, 1], got {x.dtype}")
    if x.numel():
        low, high = (bound.item() for bound in torch.aminmax(x.detach()))
        # Written so that NaN, which fails every comparison, is refused as well.
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} must lie in [0, 1], got values from {low:.6g} to {high:.6g}")
