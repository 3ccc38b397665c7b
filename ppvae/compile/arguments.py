"""The arguments of a computation: tensors in containers of any kind, and what a graph takes for granted of them.

Tuples, lists, dicts, named tuples and packed sequences are taken apart as torch's own tools do. Their structure (the
keys of a dict, the length of a list, the class of a named tuple) belongs to the kind of the arguments, and so does what
each leaf is: the layout of a tensor, the value of a number, a string or a flag, an object with its attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from ppvae._internals import flatten, path_of_leaf, unflatten
from ppvae.compile.guards import Same, fingerprint, is_plain_object


class UncompilableError(RuntimeError):
    """What a pair computes depends on more than a graph can hold; the message says on what."""


class Arguments:
    """The arguments of one call.

    Args:
        values: the arguments.
        names: what they are called in messages, by their places.

    Attributes:
        values: as given.
        leaves: what their containers hold, in a fixed order.
        tensors: the tensors among the leaves.
    """

    def __init__(self, values: tuple[Any, ...], names: Sequence[str] = ()) -> None:
        self.values = values
        self.leaves, self._structure = flatten(values)
        self.tensors = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self._names = names

    def kind(self) -> Any:
        """What a graph takes for granted of them: hashable, and equal where one graph is right of both.

        Raises:
            UncompilableError: naming an argument whose elements nothing here can see.
        """
        return self._structure, tuple(self._kinds())

    def with_tensors(self, tensors: Iterable[Tensor]) -> tuple[Any, ...]:
        """The arguments with other tensors in place of theirs."""
        others = iter(tensors)
        leaves = [next(others) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        values: tuple[Any, ...] = unflatten(leaves, self._structure)
        return values

    def name(self, leaf: int) -> str:
        """What a leaf is called: `args[0]['mask']`."""
        place, path = path_of_leaf(self.values, leaf)
        return (self._names[place] if self._names else f"[{place}]") + path

    def _kinds(self) -> Iterator[Any]:
        for place, leaf in enumerate(self.leaves):
            if isinstance(leaf, Tensor):
                yield leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad
            elif leaf is None or isinstance(leaf, bool | int | float | str):
                yield type(leaf), leaf  # True is no 1
            elif hasattr(leaf, "__array__"):
                raise UncompilableError(
                    f"{self.name(place)} is a {type(leaf).__name__}, whose elements may change: make it a tensor"
                )
            else:
                yield (Same(leaf) if is_plain_object(leaf) else type(leaf)), fingerprint(leaf)
