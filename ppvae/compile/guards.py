"""What a compiled graph takes for granted, and how a change of it is noticed."""

from __future__ import annotations

import operator
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppvae._internals import persistent_buffers, version_of
from ppvae.params import LocalParams
from ppvae.rng import get_rng, set_rng


class Contents:
    """Every dict, list and set that some modules hold, with its values: attributes, parameters, children, hooks.

    Args:
        modules: the roots; containers, plain objects and modules among what they hold are followed too.
        only: the names of the only dicts of each module to look at; by default all that it holds.
    """

    def __init__(self, modules: list[nn.Module], *, only: tuple[str, ...] = ()) -> None:
        tree = (module for root in modules for module in root.modules())
        chosen = [vars(module)[name] for module in tree for name in only]
        containers, keyed = (list(chosen), []) if only else _containers(modules)
        self._containers = containers
        self._keyed: list[Any] = keyed
        self._held = [(container, _values(container)) for container in containers]
        self._note()

    def tensors(self) -> list[Tensor]:
        """The tensors among the values that need no gradient, which a computation may write to."""
        values = (value for _, held in self._held for value in held.values())
        return list({id(v): v for v in values if isinstance(v, Tensor) and not v.requires_grad}.values())

    def changed(self) -> str | None:
        """The name of something that is no longer what it was; None where nothing changed."""
        if list(map(len, self._containers)) == self._sizes:  # the common case, quickly; most are empty
            now = self._all_values()
            if len(now) == len(self._everything) and all(map(operator.is_, now, self._everything)):
                return None
        for container, before in self._held:
            values = _values(container)
            if len(values) != len(before):
                return "the number of attributes"
            for (name, a), (name_before, b) in zip(values.items(), before.items(), strict=True):
                if name != name_before or not (a is b or (isinstance(a, bool | int | float | str) and a == b)):
                    return f"the attribute {name!r}"
        self._note()  # what changed is bookkeeping
        return None

    def counted(self) -> str | None:
        """The name of a number or a text that is another now, or a container that grew; None where there is none.

        Tensors and other objects do not count: many pairs make them anew at every run.
        """
        for container, before in self._held:
            values = _values(container)
            if len(values) != len(before):
                return "the length of a container"
            for (name, a), b in zip(values.items(), before.values(), strict=True):
                if isinstance(a, bool | int | float | str) and not (a is b or a == b or (a != a and b != b)):
                    return f"the attribute {name!r}"
        return None

    def _note(self) -> None:
        """Notes what all of it is now."""
        filled = [container for container in self._containers if len(container)]
        self._dicts = [container for container in filled if isinstance(container, dict)]
        self._lists = [container for container in filled if not isinstance(container, dict)]
        self._sizes = list(map(len, self._containers))
        self._everything = self._all_values()

    def _all_values(self) -> list[Any]:
        return list(chain(*map(dict.values, self._dicts), *self._keyed, *self._lists))


_OF_A_MODULE = frozenset(vars(nn.Module()))
"""The attributes that every module has."""

_BOOKKEEPING = {"_pyro_name", "_pyro_context"}
"""What Pyro sets on a module as it runs; what begins with _ppvae is ours."""

MAX_OBJECTS = 10_000
"""How many objects an argument, a handler or an objective may hold."""

_LIBRARIES = {"torch", "pyro", "builtins"}
"""Whose objects are taken as they are."""

_MACHINERY = sys.stdlib_module_names - {"types", "argparse", "collections"}
"""Packages of the language whose objects hold their own doings (loggers, threads), and not what somebody put there."""


def _containers(modules: list[nn.Module]) -> tuple[list[Any], list[Any]]:
    """What some modules hold, and the dicts in it whose keys are the user's: no attributes, and no module's own."""
    containers: list[Any] = []
    attributes: set[int] = set()
    seen: dict[int, Any] = {}
    waiting: list[Any] = list(modules)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value  # alive, so that no other takes its address
        if isinstance(value, dict | list | set | deque | _Attributes):
            containers.append(value)
            waiting += _values(value).values()
        elif isinstance(value, tuple | frozenset):
            waiting += value
        elif isinstance(value, partial):
            waiting += [value.func, value.args, value.keywords]
        elif isinstance(value, nn.Module) or is_plain_object(value):
            own = getattr(value, "__dict__", {})
            attributes |= {id(own), *(id(own[name]) for name in _OF_A_MODULE & own.keys())}
            waiting.append(own)
            waiting += [_Attributes(value, kind) for kind in type(value).__mro__ if _is_of_the_user(kind)]
    return containers, [c for c in containers if isinstance(c, dict) and id(c) not in attributes]


def is_plain_object(value: Any) -> bool:
    """Whether this is an object of somebody's own class, whose attributes may be set."""
    return (
        not isinstance(value, nn.Module | Tensor | type)
        and _package(type(value)) not in _LIBRARIES
        and (hasattr(value, "__dict__") or hasattr(value, "__slots__"))
    )


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _is_of_the_user(kind: type) -> bool:
    """Whether a class is neither of the language nor of a library, so that its own attributes may be set."""
    package = _package(kind)
    return package not in _LIBRARIES and package != "ppvae" and package not in sys.stdlib_module_names


def has_code_of_the_user(objective: Any) -> bool:
    """Whether an objective, or one that it is made of, is of a class that is no library's."""
    parts = [objective, *getattr(objective, "__dict__", {}).values()]
    return any(_is_of_the_user(type(part)) for part in parts)


class _Attributes:
    """What an object has from one of its classes: the class's own attributes, and the object's slots."""

    def __init__(self, owner: Any, kind: type) -> None:
        self._owner = owner
        self._class = vars(kind)
        slots = self._class.get("__slots__", ())
        self._slots = (slots,) if isinstance(slots, str) else tuple(slots)

    def __iter__(self) -> Iterator[Any]:
        return chain(self._class.values(), (getattr(self._owner, name, None) for name in self._slots))

    def __len__(self) -> int:
        return len(self._class) + len(self._slots)


def _values(container: Any) -> dict[Any, Any]:
    """The values that a container holds by their names or places, but for the bookkeeping on a module."""
    if not isinstance(container, dict):
        return dict(enumerate(container))
    return {
        name: value
        for name, value in container.items()
        if name not in _BOOKKEEPING and not (isinstance(name, str) and name.startswith("_ppvae"))
    }


def fingerprint(holder: Any, seen: dict[int, int] | None = None, *, modules: bool = False) -> Any:
    """Something hashable that differs where `holder`, an argument, a handler or an objective, would act otherwise.

    Numbers and strings by value and type, containers by their contents, objects of somebody's own class also by their
    attributes and by those of the class, anything else (tensors, functions) by identity.

    Args:
        holder: what is looked at, with all that it holds, however deep.
        seen: the objects that were met on the way, by their order.
        modules: whether modules are objects too, and are not guarded themselves.

    Raises:
        ValueError: where it holds more objects than can be looked at at every call.
    """
    if holder is None or isinstance(holder, bool | int | float | str):
        return type(holder), holder
    if isinstance(holder, LocalParams):
        return LocalParams  # ours: it answers from the modules, which are guarded themselves
    is_of_pyro = isinstance(holder, Messenger | ELBO)
    is_module = modules and isinstance(holder, nn.Module)
    is_object = is_of_pyro or is_module or (is_plain_object(holder) and _package(type(holder)) not in _MACHINERY)
    if not (is_object or isinstance(holder, dict | list | tuple | set | frozenset | deque | partial)):
        return Same(holder)
    seen = {} if seen is None else seen
    if id(holder) in seen:
        return seen[id(holder)]
    if len(seen) == MAX_OBJECTS:
        raise ValueError(f"more than {MAX_OBJECTS} objects are held by an argument, an objective or a handler")
    seen[id(holder)] = len(seen)
    look = partial(fingerprint, seen=seen, modules=modules)
    if is_object:
        own = [look(vars(holder))] if hasattr(holder, "__dict__") else []
        classes = [_Attributes(holder, kind) for kind in type(holder).__mro__ if _is_of_the_user(kind)]
        own += [tuple(map(look, attributes)) for attributes in classes]
        return (type(holder) if is_of_pyro else Same(holder), *own)
    if isinstance(holder, partial):
        return Same(holder.func), look(holder.args), look(holder.keywords)
    if isinstance(holder, dict):
        return tuple((name, look(value)) for name, value in _values(holder).items())
    return type(holder), *map(look, holder)


@dataclass(frozen=True, eq=False)
class Same:
    """An object by its identity, kept alive so that no other takes its address."""

    object: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.object is other.object

    def __hash__(self) -> int:
        return id(self.object)


@contextmanager
def modules_that_run(modules: list[nn.Module]) -> Iterator[None]:
    """Adds to `modules` the ones that run inside and belong to none of them: networks of plain functions."""
    owned = {id(module) for root in modules for module in root.modules()}

    def note(module: nn.Module, args: Any) -> None:
        if id(module) not in owned:
            modules.append(module)
            owned.update(id(child) for child in module.modules())

    hook = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()


def check_no_buffers(modules: list[nn.Module]) -> None:
    """Checks that no network of plain functions holds buffers: they would be neither saved nor restored.

    Raises:
        ValueError: naming the network.
    """
    for module in (child for root in modules for child in root.modules()):
        if persistent_buffers(module):
            raise ValueError(
                f"the pair uses a {type(module).__name__} with buffers that does not belong to it: make it an "
                "attribute of the pair, or name it in ppvae.Pair(model, guide, modules=[...])"
            )


class Kept:
    """A tensor with a copy of what it held."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._version = version_of(tensor)
        self._copy = tensor.detach().clone()

    @property
    def is_written(self) -> bool:
        """Whether it was written to since, also by batch norm's kernel, which tells no version counter."""
        return version_of(self.tensor) != self._version or not torch.equal(self.tensor, self._copy)

    def restore(self) -> None:
        """Puts back what it held, where it was written to."""
        if self.is_written:
            self.tensor.copy_(self._copy)


@contextmanager
def state_unchanged(
    modules: list[nn.Module], parameters: list[Tensor], tensors: Sequence[Tensor] = ()
) -> Iterator[list[bool]]:
    """Puts back random state, buffers and gradients on leaving, unless something is put into the list that it gives.

    Args:
        modules: whose buffers and gradients.
        parameters: others whose gradients.
        tensors: others whose values.
    """
    owned = [parameter for module in modules for parameter in module.parameters()]
    buffers = list({id(b): b for module in modules for b in module.buffers()}.values())
    device = next((t.device for t in (*parameters, *owned, *buffers) if t.is_cuda), torch.device("cpu"))
    rng, copies = get_rng(device), [b.detach().clone() for b in buffers]
    keep: list[bool] = []
    others = [Kept(tensor) for tensor in tensors if not tensor.is_inference()]
    try:
        yield keep
    finally:
        if not keep:
            set_rng(rng, device)
            with torch.no_grad():
                for kept in others:
                    kept.restore()
                for buffer, copy in zip(buffers, copies, strict=True):
                    buffer.copy_(copy)
            for parameter in (*parameters, *owned):
                parameter.grad = None
