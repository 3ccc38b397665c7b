"""How a pair of one's own is built, and which data it is evaluated on: what a run folder needs to be opened again."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, Self

import torch
from torch import nn

from ppvae.pair import check_pair
from ppvae.rng import forked_rng
from ppvae.weights import restore_weights

_KEYS = {"pair", "data"}


@dataclass(frozen=True)
class Recipe:
    """Functions that build a run's pair and load its test data, written to the run's `config.json` by name.

    `ppvae.open_run(folder, trust=True)` imports and calls them, and so does `python -m ppvae.evaluate RUN --trust`.

    Args:
        pair: called without arguments it returns the pair: a function or class of a module, or a `functools.partial` of
            one with keyword arguments that JSON can hold.
        data: the same for the data to evaluate on, a tensor or a tuple of the pair's arguments; None is no data.

    Raises:
        TypeError: where a function cannot be found again by name, or an argument is not JSON.

    Example:
        >>> from functools import partial
        >>> from ppvae.models import PPCA
        >>> recipe = Recipe(partial(PPCA, data_dim=8, latent_dim=2))
        >>> recipe.to_json()["pair"]
        {'function': 'ppvae.models.ppca:PPCA', 'arguments': {'data_dim': 8, 'latent_dim': 2}}
    """

    pair: Callable[[], nn.Module]
    data: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        self.to_json()

    def to_json(self) -> dict[str, Any]:
        """The functions by name, with their arguments."""
        parts = {"pair": self.pair, "data": self.data}
        return {name: None if function is None else _reference(name, function) for name, function in parts.items()}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """The recipe of a config, its functions imported: code that runs is code of the reader's own.

        Raises:
            ValueError: where it is no recipe, or its functions are not there.
        """
        if not isinstance(content, dict) or not content.keys() <= _KEYS or not content.get("pair"):
            raise ValueError(f"the recipe must name the functions 'pair' and 'data', got {content!r}")
        return cls(**{name: _function(name, of) for name, of in content.items() if of is not None})

    def build(self) -> nn.Module:
        """The pair, untrained; the global random state is left alone.

        Raises:
            TypeError: where the function returns something else.
        """
        with forked_rng(torch.device("cpu"), 0):
            pair = self.pair()
        check_pair(pair, name="what the recipe's pair() returns")
        return pair

    def check(self, pair: nn.Module) -> None:
        """Checks that it builds a pair which takes the weights of this one.

        Raises:
            ValueError: where it does not, naming them.
        """
        try:
            restore_weights(self.build(), pair.state_dict(), source="the pair")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"recipe: it does not build the pair that is trained: {error}") from error


def _reference(name: str, function: Any) -> dict[str, Any]:
    """A function by module, or file, and name.

    Raises:
        TypeError: where it has none, or an argument cannot be kept.
    """
    inner, arguments = function, {}
    if isinstance(function, partial):
        if function.args:
            raise TypeError(f"recipe: {name} must be a partial of keyword arguments, got {function.args} by position")
        inner, arguments = function.func, dict(function.keywords)
    named = isinstance(inner, FunctionType | type) and "<" not in inner.__qualname__ and "." not in inner.__qualname__
    if not named:
        raise TypeError(f"recipe: {name} must be a function or class that its module knows by name, got {function!r}")
    try:
        same = json.loads(json.dumps(arguments, allow_nan=False)) == arguments
    except (TypeError, ValueError):
        same = False
    if not same:
        raise TypeError(f"recipe: the arguments of {name} must be what JSON can hold, got {arguments!r}")
    return {"function": f"{_home(name, inner)}:{inner.__qualname__}", "arguments": arguments}


def _home(name: str, function: Any) -> str:
    """The module that a function is imported from; of a script that runs, the module that `-m` named, or its file."""
    if function.__module__ != "__main__":
        return function.__module__
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:
        return spec.name
    if (file := getattr(main, "__file__", None)) is None:
        raise TypeError(f"recipe: {name} must be a function of a module or a script, got one of an interactive session")
    return str(Path(file).resolve())


def _function(name: str, content: Any) -> Any:
    """What `_reference` describes, imported.

    Raises:
        ValueError: where it is no such description, or names nothing.
    """
    reference = content.get("function") if isinstance(content, dict) else None
    arguments = content.get("arguments", {}) if isinstance(content, dict) else None
    if not isinstance(reference, str) or reference.count(":") < 1 or not isinstance(arguments, dict):
        raise ValueError(f"recipe: {name} must have a 'function', 'module:name', and 'arguments', got {content!r}")
    home, _, function = reference.rpartition(":")
    try:
        found = getattr(_imported(home), function)
    except (ImportError, AttributeError, OSError) as error:
        raise ValueError(f"recipe: {name} is {reference}, which is not found: {error}") from error
    return partial(found, **arguments) if arguments else found


def _imported(home: str) -> Any:
    """A module by its name, or by the file that it is in."""
    if not home.endswith(".py"):
        return importlib.import_module(home)
    spec = importlib.util.spec_from_file_location(Path(home).stem, home)
    if spec is None or spec.loader is None:
        raise ImportError(f"{home} is no module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # as `import` does: what it defines finds itself there
    spec.loader.exec_module(module)
    return module
