"""The arguments of a computation: tensors in containers of any kind, and what a graph takes for granted of them.

Tuples, lists, dicts, named tuples and packed sequences are taken apart as torch's own tools do. Their structure (the
keys of a dict, the length of a list, the class of a named tuple) belongs to the kind of the arguments, and so does what
each leaf is: the layout of a tensor, the value of a string or a flag, an object with its attributes. The values of
numbers are looked at apart, see `ppvae.compile.scalars`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ppvae._internals import flatten, path_of_leaf, unflatten
from ppvae.compile.guards import Same, fingerprint, is_plain_object
from ppvae.compile.scalars import same_number


class UncompilableError(RuntimeError):
    """What a pair computes depends on more than a graph can hold; the message says on what."""


class TooLongError(UncompilableError):
    """A graph has more operations than it may."""


class Arguments:
    """The arguments of one call.

    Args:
        values: the arguments.
        names: what they are called in messages, by their places.

    Attributes:
        values: as given.
        leaves: what their containers hold, in a fixed order.
        tensors: the tensors among the leaves.
        numbers: the numbers among the leaves, by their places.
    """

    def __init__(self, values: tuple[Any, ...], names: Sequence[str] = ()) -> None:
        self.values = values
        self.leaves, self._structure = flatten(values)
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.numbers = {i: leaf for i, leaf in enumerate(self.leaves) if isinstance(leaf, float) or type(leaf) is int}
        self._names = names

    def renewed(self, values: tuple[Any, ...]) -> Arguments | None:
        """Other arguments, where these differ from them in the values of tensors alone; else None.

        None also where there is more than tuples, lists, dicts, tensors, numbers and strings: this is a quick look.
        """
        leaves: list[Any] = []
        if not _alike(values, self.values, leaves):
            return None
        again = Arguments.__new__(Arguments)
        vars(again).update(vars(self))  # at every step: a third of what copy.copy takes
        again.values, again.leaves = values, leaves
        again.tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return again

    def kind(self) -> tuple[Any, tuple[Any, ...]]:
        """What they are but for the values of numbers: their structure, and the kind of each leaf. Hashable.

        Raises:
            UncompilableError: naming an argument whose elements nothing here can see.
        """
        return self._structure, tuple(self._kinds())

    def with_tensors(self, tensors: Iterable[Tensor], scalars: Mapping[int, Any] | None = None) -> tuple[Any, ...]:
        """The arguments with other tensors, and at some places other numbers, in place of theirs."""
        others = iter(tensors)
        leaves = [next(others) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        for place, scalar in (scalars or {}).items():
            leaves[place] = scalar
        values: tuple[Any, ...] = unflatten(leaves, self._structure)
        return values

    def difference(self, kind: tuple[Any, tuple[Any, ...]], numbers: Mapping[int, Any]) -> int | None:
        """The first leaf that is not of this kind, or not this number; None where there is none."""
        _, kinds = kind
        mine = self.kind()[1]
        other = (i for i, leaf in enumerate(mine) if kinds[i : i + 1] != (leaf,))
        return next(other, next((i for i, n in self.numbers.items() if numbers.get(i) != n), None))

    def name(self, leaf: int) -> str:
        """What a leaf is called: `args[0]['mask']`."""
        place, path = path_of_leaf(self.values, leaf)
        return (self._names[place] if self._names else f"[{place}]") + path

    def _kinds(self) -> Iterator[Any]:
        for place, leaf in enumerate(self.leaves):
            if isinstance(leaf, Tensor):
                yield _layout(leaf)
            elif place in self.numbers:
                yield type(leaf)
            elif leaf is None or isinstance(leaf, bool | int | str):
                yield type(leaf), leaf  # True is no 1
            elif hasattr(leaf, "__array__") and leaf.__hash__ is None:
                raise UncompilableError(
                    f"{self.name(place)} is a {type(leaf).__name__}, whose elements may change: make it a tensor"
                )
            else:
                yield (Same(leaf) if is_plain_object(leaf) else type(leaf)), fingerprint(leaf, modules=True)


def _alike(value: Any, other: Any, leaves: list[Any]) -> bool:
    """Whether two arguments are the same but for the values of tensors; the leaves of the first are noted in order."""
    kind = type(value)
    if kind is not type(other):
        return False
    if kind is tuple or kind is list:
        return len(value) == len(other) and all(_alike(a, b, leaves) for a, b in zip(value, other, strict=True))
    if kind is dict:
        return list(value) == list(other) and all(_alike(value[key], other[key], leaves) for key in value)
    leaves.append(value)
    if isinstance(value, Tensor):
        return _layout(value) == _layout(other)
    if kind is float or kind is int:
        return same_number(value, other)
    return value is None or ((kind is bool or kind is str) and value == other)


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """What a graph takes for granted of a tensor."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad
