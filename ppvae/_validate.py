"""Checks of arguments that many functions share: counts, seeds, names, tensors and devices."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor


def check_seed(seed: Any) -> None:
    """Checks that a seed is a whole number >= 0."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number >= 0, got {seed!r}")


def names_of(given: Any) -> tuple[str, ...]:
    """The sites to condition on; a single name is one of them.

    Raises:
        TypeError: where they are no names.
    """
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"given must be a list of names of observed sites, got {given!r}")
    return names


def check_count(name: str, value: int) -> None:
    """Checks that the argument `name` is a whole number >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


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


def usable_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it.

    Raises:
        ValueError: where it does not.
    """
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch device such as 'cpu' or 'cuda', got {device!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be the CPU or a CUDA GPU, got '{device}'")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch finds no CUDA GPU on this machine")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ValueError(f"device is '{device}', but torch finds {torch.cuda.device_count()} CUDA GPUs")
    return device
