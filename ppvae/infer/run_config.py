"""The settings of a run as its `config.json` keeps them, equal texts for equal settings."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor

import ppvae
from ppvae.infer.optim import ParamGroups


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
    if type(value).__repr__ is object.__repr__:  # it holds the address
        return f"{type(value).__qualname__}({describe(vars(value)) if hasattr(value, '__dict__') else ''})"
    return getattr(value, "__qualname__", None) or repr(value)


def describe_groups(groups: ParamGroups | None) -> dict[str, Any] | None:
    """The options of `param_groups`, for the config."""
    if groups is None:
        return None
    return {pattern: {name: describe(value) for name, value in options.items()} for pattern, options in groups.items()}


def versions() -> dict[str, str]:
    """What a run is made with."""
    return {"ppvae": ppvae.__version__, "torch": torch.__version__, "pyro": pyro.__version__}
