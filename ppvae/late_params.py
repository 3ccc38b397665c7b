"""Values from a file for what modules make at first use: an autoguide has no parameters before it has seen data.

`give` leaves each with the deepest module on its way that is there, and it becomes the value of the parameter or buffer
of its name as soon as that is registered, whoever runs the module. Until then it waits: it is copied and pickled with
its module, and `waiting` has it for a file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

_WAITING = "_ppvae_waiting"
"""The attribute of a module with the values that wait there, by their names from there on."""


class _Waiting(dict[str, Tensor]):
    """Values that wait. Where there are any, also after `copy` and `pickle`, torch's registrations are listened to."""

    def __new__(cls, *args: Any) -> Self:
        _listen()
        return super().__new__(cls)


def makes_later(module: nn.Module) -> bool:
    """Whether a module may make parameters at first use: an autoguide before its first run, a `PyroModule` of a user's.

    Of other modules what a file has in excess is that of another architecture.
    """
    if hasattr(module, "prototype_trace"):
        return module.prototype_trace is None
    return isinstance(module, PyroModule) and type(module).__module__ != PyroModule.__module__


def owner(module: nn.Module, name: str) -> nn.Module:
    """The deepest module on the way to what is called `name` from `module`."""
    first, _, rest = name.partition(".")
    child = module._modules.get(first) if rest else None
    return module if child is None else owner(child, rest)


def give(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Gives a module the values of parameters and buffers, by their names from there on; what is not there waits."""
    for name, value in values.items():
        first, _, rest = name.partition(".")
        child = module._modules.get(first) if rest else None
        there = module._parameters.get(name, module._buffers.get(name))
        if child is not None:
            give(child, {rest: value})
        elif there is not None:
            _set(there, name, value)
        else:
            vars(module).setdefault(_WAITING, _Waiting())[name] = value


def waiting(module: nn.Module) -> dict[str, Tensor]:
    """The values that wait in a module and those inside of it, by their names from there on."""
    found = {}
    for path, inner in module.named_modules():
        for name, value in vars(inner).get(_WAITING, {}).items():
            found[f"{path}.{name}" if path else name] = value
    return found


def warn_of_waiting(pair: nn.Module) -> None:
    """Warns of values that still wait though model and guide have run."""
    if _listen.cache_info().currsize and (names := list(waiting(pair))):
        warnings.warn(
            f"the file that the pair was loaded from holds {names}, and the pair has made nothing of that name when it "
            "ran: is it built as the saved one was?"
        )


@cache
def _listen() -> None:
    """Lets values that wait become those of what is registered, once for the process."""
    register_module_parameter_registration_hook(_on_tensor)
    register_module_buffer_registration_hook(_on_tensor)
    register_module_module_registration_hook(_on_module)


def _on_tensor(module: nn.Module, name: str, tensor: Tensor | None) -> None:
    values = vars(module).get(_WAITING, {})
    if name in values and tensor is not None:
        _set(tensor, name, values[name])
        del values[name]


def _on_module(module: nn.Module, name: str, child: nn.Module | None) -> None:
    values = vars(module).get(_WAITING, {})
    inside = [key for key in values if key.startswith(f"{name}.")] if child is not None else []
    if child is not None:
        give(child, {key.removeprefix(f"{name}."): values[key] for key in inside})
    for key in inside:
        del values[key]


@torch.no_grad()
def _set(tensor: Tensor, name: str, value: Tensor) -> None:
    """Copies a value into a parameter or buffer."""
    if tensor.shape != value.shape:
        raise ValueError(
            f"the file that the pair was loaded from has {name!r} of shape {tuple(value.shape)}, and the pair makes it "
            f"of shape {tuple(tensor.shape)}: a guide with parameters for certain data must first run on as many, "
            "pair.guide(*data)"
        )
    tensor.copy_(value)
