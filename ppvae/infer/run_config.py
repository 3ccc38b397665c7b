"""What a run is, as its `config.json` keeps it: equal texts for equal settings, data and pairs."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import CodeType, FunctionType
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

import ppvae
from ppvae.data.source import Source
from ppvae.infer.optim import ParamGroups
from ppvae.storage import digest_of

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

_PLAIN = (bool, int, float, str, torch.dtype, FunctionType, partial, type(None))
"""What a constant of a pair is."""


def describe(value: Any) -> Any:
    """A setting for the config: numbers as they are, objects by a text that is equal for equal settings."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):  # of an objective: what its schedules write into is no setting
        return f"Tensor{tuple(value.shape)}"
    if isinstance(value, ELBO):
        # Pyro notes the plate nesting that it finds on the object.
        own = {k: v for k, v in sorted(vars(value).items()) if not k.startswith("_") and k != "max_plate_nesting"}
        options = ", ".join(f"{k}={describe(v)}" for k, v in own.items())
        return f"{type(value).__name__}({options})"
    if isinstance(value, partial):
        options = ", ".join(f"{k}={describe(v)}" for k, v in sorted(value.keywords.items()))
        return f"{describe(value.func)}({options})"
    if isinstance(value, FunctionType) and not (value.__module__ or "").startswith(("torch", "pyro", "ppvae")):
        return f"{value.__qualname__}#{_digest_of(value)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {_text(of)}" for name, of in value.items()) + "}"
    if isinstance(value, list | tuple):
        return repr([_text(of) for of in value])
    if is_dataclass(value) and not isinstance(value, type):
        options = ", ".join(f"{of.name}={_text(getattr(value, of.name))}" for of in fields(value) if of.repr)
        return f"{type(value).__qualname__}({options})"
    if type(value).__repr__ is object.__repr__:  # it holds the address
        return f"{type(value).__qualname__}({describe(vars(value)) if hasattr(value, '__dict__') else ''})"
    return getattr(value, "__qualname__", None) or _ADDRESS.sub("", repr(value))


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(describe(value))


def describe_groups(groups: ParamGroups | None) -> dict[str, Any] | None:
    """The options of `param_groups`, for the config."""
    if groups is None:
        return None
    return {pattern: {name: describe(value) for name, value in options.items()} for pattern, options in groups.items()}


def describe_source(source: Source | None) -> dict[str, Any] | None:
    """What some data are, and how minibatches are made of them."""
    if source is None:
        return None
    if source.sets:
        return {f"sets[{i}]": describe_source(part) for i, part in enumerate(source.sets)}
    settings = {name: describe(value) for name, value in source.settings().items()}
    return {"kind": type(source).__name__, "sha256": source.digest(), **settings}


def describe_pair(pair: nn.Module) -> dict[str, Any]:
    """The architecture of a pair, and the constants of its modules: a number β, an activation."""
    constants = {
        f"{path}.{name}".lstrip("."): describe(value)
        for path, module in pair.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and not name.startswith("_") and name != "training"
    }
    return {"modules": _ADDRESS.sub("", repr(pair)), "constants": constants}


def differences(started: Mapping[str, Any], resumed: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What is not equal in two nested settings, as "name was a, is b"; what one of them lacks is of another version."""
    found = []
    for name in sorted(started.keys() & resumed.keys()):
        a, b = started[name], resumed[name]
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            if isinstance(a, str) and isinstance(b, str) and "\n" in a + b:  # a line says more than all of them
                lines = a.splitlines(), b.splitlines()
                i = next((i for i, (of_a, of_b) in enumerate(zip(*lines, strict=False)) if of_a != of_b), None)
                a, b = (of[i].strip() for of in lines) if i is not None else (f"{len(of)} lines" for of in lines)
            found.append(f"{prefix}{name} was {a!r}, is {b!r}")
    return found


def versions() -> dict[str, str]:
    """What a run is made with."""
    return {
        "ppvae": ppvae.__version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "python": platform.python_version(),
    }


def _digest_of(function: FunctionType) -> str:
    """A hash of a function's code and of the values that it uses: its defaults, closure, and numbers among globals."""
    names = [name for name in function.__code__.co_names if isinstance(function.__globals__.get(name), _PLAIN[:4])]
    used = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    used += [cell.cell_contents for cell in function.__closure__ or ()]
    used += [function.__globals__[name] for name in names]
    return hashlib.sha256(repr((_code(function.__code__), [_used(value) for value in used])).encode()).hexdigest()[:16]


def _used(value: Any) -> Any:
    if isinstance(value, FunctionType):  # by its code alone: it may use the one that uses it
        return _code(value.__code__)
    return digest_of(value) if isinstance(value, Tensor) else describe(value)


def _code(code: CodeType) -> tuple[Any, ...]:
    """What code does, without where it stands."""
    return (code.co_code, [_constant(of) for of in code.co_consts], code.co_names, code.co_varnames, code.co_freevars)


def _constant(value: Any) -> Any:
    if isinstance(value, frozenset):  # its order is another in every process
        return sorted(map(repr, value))
    return _code(value) if isinstance(value, CodeType) else value
