"""Checks of arguments that many functions share: counts, seeds, weights, names, tensors and devices."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_count(name: str, value: Any, *, at_least: int = 1) -> int:
    """The argument `name` as an int, checked to be a whole number >= `at_least`: a count, a size, a seed.

    Raises:
        ValueError: where it is none; a bool is none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < at_least:
        raise ValueError(f"{name} must be a whole number >= {at_least}, got {value!r}")
    return int(value)


def check_seed(seed: Any) -> int:
    """A seed as an int, checked to be a whole number >= 0."""
    return check_count("seed", seed, at_least=0)


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """The argument `name` as a float, checked to be a finite number within bounds: a weight, a fraction, a scale.

    Args:
        name: what the message calls it.
        value: what was passed.
        above: it must be greater.
        at_least: it must not be smaller.
        below: it must be smaller.
        at_most: it must not be greater.

    Raises:
        ValueError: where it is none, NaN or infinite, or out of bounds; a bool is none.

    Example:
        >>> check_number("dropout", 1.0, at_least=0, below=1)
        Traceback (most recent call last):
        ...
        ValueError: dropout must be a finite number >= 0 and < 1, got 1.0
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    bounds = [(">", above), (">=", at_least), ("<", below), ("<=", at_most)]
    within = (
        math.isfinite(number)
        and (above is None or number > above)
        and (at_least is None or number >= at_least)
        and (below is None or number < below)
        and (at_most is None or number <= at_most)
    )
    if not within:
        wanted = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        raise ValueError(f"{name} must be a finite number{wanted and ' ' + wanted}, got {value!r}")
    return number


def names_of(given: Any) -> tuple[str, ...]:
    """The sites to condition on; a single name is one of them.

    Raises:
        TypeError: where they are no names.
    """
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"given must be a list of names of observed sites, got {given!r}")
    return names


def check_tensor(name: str, x: Any) -> Tensor:
    """The argument `name`, checked to be a tensor.

    Raises:
        TypeError: where it is something else.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}; "
            "convert an array with torch.from_numpy, unpack a split with *"
        )
    return x


def usable_device(device: str | torch.device) -> torch.device:
    """The device, with its index, if this machine has it.

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
