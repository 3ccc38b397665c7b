"""Checks of arguments that many functions share: counts, seeds, weights, names, paths, functions, tensors, devices."""

from __future__ import annotations

import importlib
import inspect
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
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


def check_seed(seed: Any, *, name: str = "seed") -> int:
    """A seed as an int, checked to be a whole number >= 0 that torch's generators take."""
    seed = check_count(name, seed, at_least=0)
    if seed >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {seed}")
    return seed


def check_flag(name: str, value: Any) -> bool:
    """The argument `name`, checked to be True or False.

    Raises:
        TypeError: where it is something else, of which Python would take "no" for True.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


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


def check_path(name: str, path: Any) -> Path:
    """The argument `name` as a path.

    Raises:
        TypeError: where it is neither text nor a path.
        ValueError: where it is empty, or holds a null byte.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"{name} must be a path, got {path!r} of type {type(path).__name__}")
    if not text or "\0" in text:
        raise ValueError(f"{name} must be a path, got {text!r}")
    return Path(text)


@contextmanager
def naming_path(name: str) -> Iterator[None]:
    """Says of what the file system refuses inside which argument it is."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise type(error)(f"{name}: {error}") from error
        raise type(error)(error.errno, f"{name}: {error.strerror}", error.filename) from error


def check_takes(name: str, function: Any, *arguments: str) -> None:
    """Checks that the argument `name` is a function which can be called with so many arguments.

    Args:
        name: what the message calls it.
        function: what was passed.
        arguments: names of what it will be given, by position.

    Raises:
        TypeError: where it is none, or takes others.
    """
    wanted = f"{name} must be a function of ({', '.join(arguments)})"
    if not callable(function):
        raise TypeError(f"{wanted}, got {function!r}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one of C tells no signature
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{wanted}, got one of {signature}: {error}") from error


def memory_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(name: str, value: Any, bytes_needed: float) -> None:
    """Checks that what the argument `name` asks for fits into the memory of this machine.

    Raises:
        ValueError: with the bytes that it takes, and those that are there.
    """
    there = memory_bytes()
    if bytes_needed > there:
        raise ValueError(
            f"{name}={value} takes {bytes_needed / 2**30:.3g} GiB of memory, of which this machine has "
            f"{there / 2**30:.3g} GiB"
        )


def check_tensor(name: str, x: Any) -> Tensor:
    """The argument `name`, checked to be a dense tensor of real numbers.

    Raises:
        TypeError: where it is something else.
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(x).__name__}; "
            "convert an array with torch.from_numpy, unpack a split with *"
        )
    check_dense(name, x)
    if x.is_complex():
        raise TypeError(f"{name} must be real, got {x.dtype}")
    return x


class InputError(ValueError):
    """A net is given what it does not take."""


def check_dense(name: str, x: Tensor) -> None:
    """Checks that a tensor has values in rows that parts can be taken of.

    Raises:
        TypeError: where it is sparse, nested or on the meta device.
    """
    if x.is_nested or x.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got {'a nested tensor' if x.is_nested else f'layout {x.layout}'}")
    if x.is_meta:
        raise TypeError(f"{name} must hold values, got a tensor on the meta device")


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


def check_autocast(dtype: Any) -> None:
    """Checks the dtype of `autocast`.

    Raises:
        ValueError: where it is no narrow floating type.
    """
    if dtype not in (None, torch.bfloat16, torch.float16):
        raise ValueError(f"autocast must be torch.bfloat16, torch.float16 or None, got {dtype!r}")


def optional_library(name: str, *others: str, what: str, extra: str) -> Any:
    """A library that only an extra installs, where it and those that go with it are there.

    Raises:
        ImportError: where one is not, with the line that installs them.
    """
    try:
        found, *_ = [importlib.import_module(of) for of in (name, *others)]
    except ImportError as error:
        names = " and ".join([", ".join([name, *others][:-1]), others[-1]]) if others else name
        raise ImportError(f'{what} needs {names}: pip install "ppvae[{extra}]"') from error
    return found
