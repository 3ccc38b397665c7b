"""What a compiled graph takes for granted, and how a change of it is noticed."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ppvae.infer.state import get_rng, set_rng
from ppvae.params import LocalParams


class Contents:
    """Every dict and list that some modules hold, with its values: attributes, parameters, buffers, children, hooks.

    Args:
        modules: the roots; containers and plain objects among their attributes are followed too.
        only: the names of the only dicts of each module to look at; by default all that it holds.
    """

    def __init__(self, modules: list[nn.Module], *, only: tuple[str, ...] = ()) -> None:
        tree = (module for root in modules for module in root.modules())
        chosen = (vars(module)[name] for module in tree for name in only)
        containers = list(chosen) if only else list(_containers(modules))
        self._held = [(container, _values(container)) for container in containers]
        self._dicts = [container for container in containers if isinstance(container, dict)]
        self._lists = [container for container in containers if isinstance(container, list)]
        self._everything = self._all_values()

    def changed(self) -> str | None:
        """The name of something that is no longer what it was; None where nothing changed."""
        now = self._all_values()
        if len(now) == len(self._everything) and all(map(operator.is_, now, self._everything)):
            return None  # the common case, quickly
        for container, before in self._held:
            now = _values(container)
            names = [name for name in container if _counts(name)] if isinstance(container, dict) else range(len(now))
            for name, a, b in zip(names, now, before, strict=False):
                if a is not b and not (isinstance(a, bool | int | float | str) and a == b):
                    return f"the attribute {name!r}"
            if len(now) != len(before):
                return "the number of attributes"
        self._everything = self._all_values()  # what changed is bookkeeping
        return None

    def _all_values(self) -> list[Any]:
        return list(chain(self._lengths(), *map(dict.values, self._dicts), *self._lists))

    def _lengths(self) -> Iterator[int]:
        return chain(map(len, self._dicts), map(len, self._lists))


def _containers(modules: list[nn.Module]) -> Iterator[Any]:
    seen: set[int] = set()
    waiting: list[Any] = [vars(module) for root in modules for module in root.modules()]
    while waiting:
        container = waiting.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        yield container
        for value in _values(container):
            if isinstance(value, dict | list):
                waiting.append(value)
            elif _is_plain_object(value):
                waiting.append(vars(value))


def _is_plain_object(value: Any) -> bool:
    if isinstance(value, nn.Module | Tensor | type) or not hasattr(value, "__dict__"):
        return False
    return not type(value).__module__.startswith(("torch", "pyro", "builtins"))


def _values(container: Any) -> list[Any]:
    """The values that a container holds, but for the bookkeeping on a module, which changes at every call."""
    if isinstance(container, dict):
        return [value for name, value in container.items() if _counts(name)]
    return list(container)


def _counts(name: Any) -> bool:
    return not str(name).startswith(("_pyro", "_ppvae"))


def fingerprint(holder: Any, depth: int = 3) -> Any:
    """Something hashable that differs where `holder`, a handler or an objective, would act otherwise.

    Numbers and strings by value, containers by their contents, anything else (tensors, functions) by identity.
    """
    if holder is None or isinstance(holder, bool | int | float | str | torch.dtype):
        return holder
    if isinstance(holder, LocalParams):
        return LocalParams  # ours: it answers from the modules, which are guarded themselves
    if isinstance(holder, dict) and depth:
        return tuple((name, fingerprint(value, depth - 1)) for name, value in holder.items())
    if isinstance(holder, list | tuple | set) and depth:
        return tuple(fingerprint(value, depth - 1) for value in holder)
    if isinstance(holder, Messenger | ELBO) and depth:
        return (type(holder), fingerprint(vars(holder), depth - 1))
    return id(holder)


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
        if module._buffers.keys() - module._non_persistent_buffers_set:
            raise ValueError(
                f"the pair uses a {type(module).__name__} with buffers that does not belong to it: make it an "
                "attribute of the pair, or name it in ppvae.Pair(model, guide, modules=[...])"
            )


@contextmanager
def state_unchanged(modules: list[nn.Module], parameters: list[Tensor]) -> Iterator[list[bool]]:
    """Puts back random state, buffers and gradients on leaving, unless something is put into the list that it gives."""
    buffers = list({id(b): b for module in modules for b in module.buffers()}.values())
    device = next((t.device for t in (*parameters, *buffers) if t.is_cuda), torch.device("cpu"))
    rng, copies = get_rng(device), [b.detach().clone() for b in buffers]
    keep: list[bool] = []
    try:
        yield keep
    finally:
        if not keep:
            set_rng(rng, device)
            with torch.no_grad():
                for buffer, copy in zip(buffers, copies, strict=True):
                    buffer.copy_(copy)
            owned = [parameter for module in modules for parameter in module.parameters()]
            for parameter in (*parameters, *owned):
                parameter.grad = None
