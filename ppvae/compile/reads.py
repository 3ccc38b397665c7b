"""What Python reads from tensors while a computation is traced: each value is noted, and none is missed.

A value that is read decides what Python does next, so that a graph is right only where it would be read again. A shape
that depends on values is one such: how many elements a mask has. Given their number, what they are is computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppvae._internals import (
    TorchDispatchMode,
    flatten,
    from_data,
    index_writes,
    modes_off,
    onednn_off,
    packed_functions,
    scalar_read,
    version_of,
)
from ppvae.compile.arguments import TooLongError, UncompilableError
from ppvae.compile.askers import asked_by, line_that_asked
from ppvae.compile.scalars import holds_scalars, scalars_as_tensors

Answer = bool | int | float | complex | tuple[bool | int | float | complex, ...]
"""What was read of a tensor: a number, or all its elements."""

aten = torch.ops.aten


@dataclass
class Read:
    """A value that Python asked of a tensor."""

    tensor: Tensor
    answer: Answer
    line: str


def answer_of(tensor: Tensor) -> Answer:
    """What Python reads of a tensor."""
    return tuple(tensor.flatten().tolist()) if tensor.dim() else tensor.item()


class Reads:
    """The values that are read inside its two contexts, in order.

    Args:
        limit: how many operations a graph may have.
    """

    def __init__(self, limit: int) -> None:
        self.found: list[Read] = []
        self.functions = _Functions(self)
        self.operations = _Operations(self, limit)

    def answer(self, tensor: Tensor) -> Answer:
        """What Python gets that asks for a number.

        Pyro's NaN checks are left to the caller of the step. Where Pyro leaves out enumerated values of probability
        zero they stay in: zero times their cost, which changes nothing, or makes the loss NaN where that is infinite.
        """
        module, function = asked_by()
        if module == "pyro.util" and "warn_if" in function:
            return False
        if (module, function) == ("pyro.infer.util", "compute_expectation"):
            return True
        return self.note(tensor)

    def note(self, tensor: Tensor) -> Answer:
        """Reads a tensor, and notes that it was."""
        with modes_off():
            answer = answer_of(tensor)
        self.found.append(Read(tensor.detach().clone(), answer, line_that_asked()))  # it may be written to later
        return answer


class _Functions(TorchFunctionMode):
    """Lets the numbers that Pyro reads for its loss stay tensors, and notes what is read past every dispatch mode."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.item and asked_by()[0].startswith("pyro.infer."):
            return args[0].detach()
        if func in _HANDED_OUT:
            raise UncompilableError(f"{func.__name__} reads values of a tensor, at {line_that_asked()}")
        if func in _CONVERSIONS:
            return _CONVERSIONS[func](self._reads.answer(args[0]))
        if func is Tensor.tolist:
            self._reads.note(args[0])
            with modes_off():
                return args[0].tolist()
        if holds_scalars(args, kwargs):
            args, kwargs = scalars_as_tensors(args, kwargs)
            if func in (torch.tensor, torch.as_tensor) and isinstance(args[0], Tensor):
                return args[0].to(dtype=kwargs.get("dtype"), device=kwargs.get("device"), copy=True)
        for tensor in _read_inside(func, args, kwargs):
            self._reads.note(tensor)
        if func == torch.lstm:  # no graph can hold the backward pass of oneDNN's: it is written down by its parts
            with onednn_off():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _read_inside(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that a function reads where no dispatch mode sees it: lengths, and those in lists of data."""
    if func in packed_functions():
        return [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and not a.is_floating_point()]
    lists = [a for a in args if isinstance(a, list | tuple)] if func in from_data() else []
    return [leaf for leaf in flatten(lists)[0] if isinstance(leaf, Tensor)]


_HANDED_OUT = (Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)
"""What gives the memory of a tensor to somebody else."""

_CONVERSIONS: dict[Any, Callable[[Any], Any]] = {
    Tensor.__bool__: bool,
    Tensor.__int__: int,
    Tensor.__float__: float,
    Tensor.__complex__: complex,
    Tensor.__index__: operator.index,
}
"""What Python calls to read a number, also from within constructors that no dispatch mode sees into."""


class _Operations(TorchDispatchMode):
    """Notes what functions read inside, and gives shapes that depend on values as they are."""

    def __init__(self, reads: Reads, limit: int) -> None:
        super().__init__()
        self._reads = reads
        self._left = limit
        self._known: dict[Any, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._left -= 1
        if self._left < 0:
            raise TooLongError("the graph would be too long")
        if func is scalar_read():
            return self._reads.answer(args[0])
        if func is aten.nonzero.default:
            return self._places(args[0])
        if func is aten.masked_select.default:
            values, mask = torch.broadcast_tensors(*args)
            return aten.index(values, list(self._places(mask).unbind(1)))
        if func is aten.index.Tensor and any(map(_is_mask, args[1])):
            return func(args[0], self._without_masks(args[1]))
        if func in index_writes() and all(_is_mask(i) and self._is_known(i) for i in args[1]):
            return func(args[0], self._without_masks(args[1]), *args[2:], **kwargs)
        if func.name() == "aten::_pack_padded_sequence":
            return self._packed(func, *args)
        depends = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags)
        if depends and func is not aten.index.Tensor:
            raise UncompilableError(
                f"{func} gives a shape or a Python value that depends on values of tensors, at {line_that_asked()}"
            )
        return func(*args, **kwargs)

    def _places(self, mask: Tensor) -> Tensor:
        """Where a mask is true: as many places as there are now."""
        key = _key(mask)
        if key not in self._known:
            count = self._reads.note(mask.ne(0).sum())
            self._known[key] = mask, aten.nonzero_static(mask, size=count)  # the mask too: its memory stays its own
        return self._known[key][1]

    def _packed(self, packing: Any, series: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        """Packed series, by the places of their elements: these are constants, since the lengths are read anyway."""
        with modes_off():
            places = torch.arange(series.shape[:2].numel()).view(*series.shape[:2], 1)
            found, sizes = packing(places, lengths, batch_first)
            found = found[:, 0].to(series.device)
        return series.flatten(0, 1).index_select(0, found), sizes

    def _is_known(self, mask: Tensor) -> bool:
        return _key(mask) in self._known

    def _without_masks(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Indices with the places of masks in place of these."""
        found: list[Tensor | None] = []
        for index in indices:
            found += self._places(index).unbind(1) if index is not None and _is_mask(index) else [index]
        return found


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _key(mask: Tensor) -> Any:
    """The same for every alias of a tensor, until it is written to."""
    return mask.data_ptr(), mask.shape, mask.stride(), version_of(mask)
