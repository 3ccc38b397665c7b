"""What users hold data in, made the tensors that a pair takes: arrays, data frames, and iterables of minibatches.

A tensor passes as it is. Everything else is turned into one here, at the door, so that nothing behind it asks.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ppvae.pair import Batch, check_pair, usable


class SupportsArray(Protocol):
    """What NumPy makes an array of: its own arrays, pandas frames and series, others."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """The array."""
        ...


P = ParamSpec("P")
R = TypeVar("R")

ROWS_READ_AT_ONCE = 256
"""Of a torch data set that is to be evaluated."""

Column = int | str
"""One of what a minibatch holds: its place in a tuple, or its name in a dict."""


def is_array(value: Any) -> bool:
    """Whether it is a NumPy array, a pandas frame or series, or another that NumPy makes an array of, and no tensor."""
    return hasattr(value, "__array__") and not isinstance(value, Tensor | type)


def dtype_of(pair: nn.Module) -> torch.dtype:
    """The floating-point dtype that a pair computes in: that of its first such parameter, else torch's default."""
    floating = (p.dtype for p in pair.parameters() if p.is_floating_point())
    return next(floating, torch.get_default_dtype())


def as_tensor(name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """An array or data frame as a tensor; floating-point numbers as `dtype`, with a warning where that is another.

    Memory is shared where it may be written to and lies in order: kernels round in other ways where it does not.

    Args:
        name: of the argument.
        value: what `is_array` says yes to.
        dtype: what floating-point numbers become; None leaves them.

    Raises:
        TypeError: where it does not hold numbers, naming the column of a frame; or hides some behind a mask.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise TypeError(f"{name} is a masked array with {np.ma.count_masked(value)} values left out: fill them first")
    array = np.asarray(_of_numbers(name, value) if hasattr(value, "columns") else value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, got an array of dtype {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.longdouble:
        array = array.astype(np.float64)
    shareable = array.flags.writeable and array.flags.c_contiguous
    tensor = torch.from_numpy(array if shareable else array.copy())
    if dtype is None or not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    warnings.warn(f"{name} holds {array.dtype} numbers, cast to {dtype}, the dtype of the pair's parameters")
    return tensor.to(dtype)


def _of_numbers(name: str, frame: Any) -> Any:
    """The array of a data frame, all of whose columns must hold numbers."""
    kinds = {column: np.asarray(frame[column]).dtype for column in frame.columns}
    if wrong := [f"{column!r} ({kind})" for column, kind in kinds.items() if kind.kind not in "biuf"]:
        raise TypeError(
            f"{name} is a data frame with columns that do not hold numbers: {', '.join(wrong)}; make codes of them "
            "(frame[column].astype('category').cat.codes), and arguments of their own where they need a likelihood of "
            "their own"
        )
    return frame


def as_minibatch(name: str, item: Any, columns: Sequence[Column] | None = None) -> Batch:
    """What an iterable gives as one minibatch, as a tuple of tensors and None.

    Args:
        name: of the iterable.
        item: a tensor or array, a tuple or list of these and None, or a mapping.
        columns: which of them are arguments of the pair, in its order; None is all of a tuple.

    Raises:
        TypeError: where it is something else.
        ValueError: where a column is not there.
    """
    if isinstance(item, Mapping):
        if columns is None:
            raise TypeError(
                f"{name} gives minibatches that are dicts, of {list(item)}: say which are the pair's arguments, "
                f"ppvae.data.IterableSource({name}, columns=({next(iter(item), '')!r},))"
            )
        there: Mapping[Any, Any] = item
    else:
        parts = (item,) if isinstance(item, Tensor) or is_array(item) else item
        if not isinstance(parts, tuple | list):
            raise TypeError(
                f"{name} must give minibatches that are tensors or tuples of them, got {type(item).__name__}"
            )
        there = dict(enumerate(parts))
    if missing := [column for column in columns or () if column not in there]:
        raise ValueError(f"columns: a minibatch of {name} has no {missing[0]!r}, it has {list(there)}")
    picked = {column: there[column] for column in (there if columns is None else columns)}
    return tuple(as_tensor(f"{name}[{c}]", v) if is_array(v) else v for c, v in picked.items())


def check_number_of_arguments(pair: nn.Module, batch: Batch, name: str) -> None:
    """Checks that the pair takes as many arguments as a minibatch has.

    Raises:
        TypeError: with how many it takes, and how some are picked.
    """
    try:
        signature = inspect.signature(cast(Callable[..., Any], pair.model))
    except (TypeError, ValueError):  # one of C tells no signature
        return
    try:
        signature.bind(*batch)
    except TypeError as error:
        names = [
            p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        raise TypeError(
            f"each tensor of {name} is one argument of the pair: it takes {len(names)} ({', '.join(names)}), got "
            f"{len(batch)}; of minibatches ppvae.data.IterableSource({name}, columns=(0,)) picks some"
        ) from error


def as_batch(data: Sequence[Any], pair: nn.Module, *, name: str = "data") -> Batch:
    """The arguments that an evaluator was given, as tensors; minibatches are put together.

    Args:
        data: tensors, arrays, frames and None; or one iterable of minibatches, or source of them, which is passed once.
        pair: a model/guide pair.
        name: what errors call them.

    Raises:
        TypeError: where they are none of these, or not as many as the pair takes.
        ValueError: where minibatches do not fit together.
    """
    if len(data) == 1 and isinstance(data[0], Dataset):
        return _joined(list(_minibatches(loader_of(data[0], ROWS_READ_AT_ONCE), name)), name)
    if len(data) == 1 and _gives_minibatches(data[0]):
        return _joined(list(_minibatches(data[0], name)), name)
    dtype = dtype_of(pair) if any(map(is_array, data)) else None
    return tuple(as_tensor(f"{name}[{i}]", t, dtype) if is_array(t) else t for i, t in enumerate(data))


def loader_of(data: Dataset[Any], batch_size: int, seed: int | None = None) -> DataLoader[Any]:
    """The minibatches of a torch data set, in an order of each epoch's own where there is a seed."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    shuffle = seed is not None and not isinstance(data, IterableDataset)
    return DataLoader(data, batch_size=batch_size, shuffle=shuffle, generator=generator)


def _gives_minibatches(value: Any) -> bool:
    """Whether it is an iterable of minibatches or a source of them."""
    if isinstance(value, Tensor | str | bytes | Mapping) or is_array(value):
        return False
    return hasattr(value, "epoch") or isinstance(value, Iterable)


def _minibatches(data: Any, name: str) -> Iterator[Batch]:
    """The minibatches of one pass."""
    if not hasattr(data, "epoch"):
        yield from (as_minibatch(name, item) for item in data)
        return
    if getattr(data, "weights", None) is not None:
        raise TypeError(f"{name} must be one data set, got {type(data).__name__}: give one of its sets")
    yield from data.epoch(0)


def _joined(minibatches: list[Batch], name: str) -> Batch:
    """Minibatches put together along their rows."""
    if not minibatches:
        raise ValueError(f"{name} is empty: it gives no minibatch")
    sizes = sorted({len(batch) for batch in minibatches})
    if len(sizes) > 1:
        raise ValueError(f"{name} must give minibatches of one form, got {sizes[0]} and {sizes[1]} parts in some")
    return tuple(_rows(f"{name}[{i}]", parts) for i, parts in enumerate(zip(*minibatches, strict=True)))


def _rows(name: str, parts: Sequence[Any]) -> Tensor | None:
    """One argument of all minibatches."""
    if all(part is None for part in parts):
        return None
    if not all(isinstance(part, Tensor) and part.dim() for part in parts):
        kinds = sorted({type(part).__name__ for part in parts})
        raise TypeError(f"{name} must be a tensor with a leading batch dim in every minibatch, got {kinds}")
    if len(shapes := {tuple(part.shape[1:]) for part in parts}) > 1:
        raise ValueError(
            f"{name} has data of several shapes in different minibatches, {sorted(shapes)[:3]}: they cannot be put "
            "together; evaluate each minibatch, or pad all to one shape"
        )
    return usable(torch.cat(list(parts)))


def takes_data(evaluate: Callable[Concatenate[nn.Module, P], R]) -> Callable[Concatenate[nn.Module, P], R]:
    """Lets a function `(pair, *data, option=...)` take arrays, frames and minibatches in the place of tensors."""

    @wraps(evaluate)
    def evaluate_data(pair: nn.Module, *data: P.args, **options: P.kwargs) -> R:
        if any(not isinstance(t, Tensor) and t is not None for t in data):
            check_pair(pair)
            data = as_batch(data, pair)  # type: ignore[assignment]
            check_number_of_arguments(pair, data, "data")
        return evaluate(pair, *data, **options)

    return evaluate_data
