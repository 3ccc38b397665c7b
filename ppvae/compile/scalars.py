"""Python numbers among the arguments that change from call to call, such as a KL weight that is annealed.

While a computation is traced, each is a `Scalar`: an object that answers as the number would, and has a `Tape` note
what Python makes of it. Python's own arithmetic is repeated at every call, in Python. What meets a tensor is a 0-dim
tensor, which the graph reads and every call fills anew. Whatever Python decides by it (`beta > 0`, `range(n)`,
`int(x)`, a key of a dict) is a guard: a graph is used only where all of these come out as they did.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from ppvae._internals import flatten, modes_off, unflatten
from ppvae.compile.askers import line_that_asked

Real = bool | int | float


@dataclass
class Tape:
    """What Python makes of some numbers, in one run.

    Attributes:
        steps: each value after the numbers: the function that gives it, and of what: places of values, and constants.
        guards: the places of those that must come out as they did.
        readers: for each of these the line of code that asked.
        tensors: what the graph reads, by the place of its value, its dtype and its device.
    """

    values: list[Real]
    steps: list[tuple[Callable[..., Real], tuple[Any, ...]]] = field(default_factory=list)
    guards: dict[int, Real] = field(default_factory=dict)
    readers: dict[int, str] = field(default_factory=dict)
    tensors: dict[tuple[int, torch.dtype, torch.device], Tensor] = field(default_factory=dict)

    def replay(self, numbers: Sequence[Real]) -> list[Real] | None:
        """The values of other numbers; None where Python would have decided otherwise, or failed."""
        values = list(numbers)
        try:
            for function, operands in self.steps:
                values.append(function(*(values[o.place] if isinstance(o, _Place) else o for o in operands)))
                place = len(values) - 1
                if place in self.guards and not same_number(values[place], self.guards[place]):
                    return None
        except ArithmeticError:
            return None
        return values

    def fill(self, numbers: Sequence[Real]) -> None:
        """Gives the tensors that the graph reads the values of other numbers, for which Python decides the same."""
        values = self.replay(numbers) or []
        for (place, _, _), tensor in self.tensors.items():
            tensor.fill_(values[place])

    def append(self, function: Callable[..., Real], *operands: Any) -> Scalar:
        """The value of a function of scalars and constants."""
        places = tuple(_Place(o.place) if type(o) is Scalar else o for o in operands)
        value = function(*(o.value if type(o) is Scalar else o for o in operands))
        self.values.append(value)
        self.steps.append((function, places))
        return Scalar(self, len(self.values) - 1)

    def decide(self, function: Callable[..., Any], *operands: Any) -> Any:
        """The same as a plain value, which must come out again."""
        result = self.append(function, *operands)
        self.guards[result.place] = result.value
        self.readers[result.place] = line_that_asked()
        return result.value

    def tensor(self, place: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A value as a tensor."""
        key = (place, dtype, device)
        if key not in self.tensors:
            with modes_off():
                self.tensors[key] = torch.tensor(self.values[place], dtype=dtype, device=device)
        return self.tensors[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tape) and (self.steps, self.guards, list(self.tensors)) == (
            other.steps,
            other.guards,
            list(other.tensors),
        )


@dataclass(frozen=True)
class _Place:
    place: int


def same_number(a: Real, b: Real) -> bool:
    """Whether two numbers are of one type and value, the sign of a zero included; NaN is NaN."""
    if type(a) is not type(b):
        return False
    return (a == b and (a != 0 or math.copysign(1, a) == math.copysign(1, b))) or (a != a and b != b)


class Scalar:
    """A number that a tape takes notes of. To `isinstance` it is what it stands for.

    Python's own functions of numbers (`math.exp`) take it by its `__float__`, so that nothing is missed: they read a
    value that is guarded from then on.
    """

    __slots__ = ("place", "tape")

    def __init__(self, tape: Tape, place: int) -> None:
        self.tape = tape
        self.place = place

    @property
    def value(self) -> Real:
        """The number in this run."""
        return self.tape.values[self.place]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.value)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = scalars_as_tensors(args, kwargs or {})
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(_decided(_itself)(self), name)

    def __deepcopy__(self, memo: Any) -> Scalar:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a number that is traced cannot be pickled")


def _itself(value: Real) -> Real:
    return value


def _reversed(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: function(b, a)


def _noted(function: Callable[..., Real]) -> Callable[..., Any]:
    """A method that gives the next value on the tape; NotImplemented where it meets anything but numbers."""

    def method(self: Scalar, *others: Any) -> Any:
        if not all(type(o) in (Scalar, bool, int, float) for o in others):
            return NotImplemented
        return self.tape.append(function, self, *others)

    return method


def _decided(function: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose plain result Python may decide by."""

    def method(self: Scalar, *others: Any) -> Any:
        if not all(type(o) in (Scalar, bool, int, float, str) for o in others):
            return NotImplemented
        return self.tape.decide(function, self, *others)

    return method


_NOTED: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": operator.abs,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
}
_BOTH_SIDES = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and_", "or_", "xor")
_DECIDED: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne", "index")},
    **{"bool": bool, "int": int, "float": float, "complex": complex, "hash": hash, "repr": repr, "str": str},
    "format": format,
}

for _name, _function in _NOTED.items():
    setattr(Scalar, f"__{_name}__", _noted(_function))
for _name in _BOTH_SIDES:
    _function = getattr(operator, _name)
    setattr(Scalar, f"__{_name.strip('_')}__", _noted(_function))
    setattr(Scalar, f"__r{_name.strip('_')}__", _noted(_reversed(_function)))
for _name, _function in _DECIDED.items():
    setattr(Scalar, f"__{_name}__", _decided(_function))


def holds_scalars(*arguments: Any) -> bool:
    """Whether there are scalars among the arguments of a function."""
    return any(type(leaf) is Scalar for leaf in flatten(arguments)[0])


def scalars_as_tensors(args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The arguments of a function of torch with 0-dim tensors in place of scalars, of a number's dtype there."""
    leaves, structure = flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    like = max(tensors, key=lambda t: (t.is_floating_point(), t.dim() > 0), default=None)
    found: tuple[Any, Any] = unflatten([_as_tensor(x, like) if type(x) is Scalar else x for x in leaves], structure)
    return found


def _as_tensor(scalar: Scalar, like: Tensor | None) -> Tensor:
    """The number as torch takes it beside `like`; not rounded more than it is there."""
    if like is None:
        return scalar.tape.tensor(
            scalar.place,
            torch.get_default_dtype() if isinstance(scalar.value, float) else torch.int64,
            torch.get_default_device(),
        )
    dtype = torch.result_type(like, scalar.value)
    half = dtype in (torch.float16, torch.bfloat16) and like.dim() > 0
    return scalar.tape.tensor(scalar.place, torch.float32 if half else dtype, like.device)
