"""Where Pyro's parameters live: on the pair, never shared through a process-wide name; and how they get to disk.

Pyro keeps what `pyro.param` and `pyro.module` declare in one global store, so two models that use the same
names share their parameters. While ppvae runs a pair, `local_params` intercepts those statements:

- a module's own parameters (`pyro.module`, `PyroModule`) are used where they are, on the module;
- a value declared with `pyro.param` becomes an `nn.Parameter` of the pair, under `pair.pyro_params`;
- a name that the user's Pyro store already holds is used in place: it shares its memory with the store, so
  that a pair trained with `pyro.infer.SVI` is evaluated with the values it was trained to, and trained on from there,
  with a warning, as every pair with that name shares it.

Nothing is added to the store, and it is never cleared. One thing stays there: the running averages of
`TraceGraph_ELBO`'s baselines, which Pyro writes into it by itself.

`save` and `load` keep all of these, and the buffers of the modules, as one safetensors file.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to
from torch.nn.parameter import is_lazy

from ppvae._internals import fresh_module_state
from ppvae._validate import check_path, naming_path
from ppvae.late_params import give, makes_later, owner, waiting
from ppvae.pair import check_pair, device_of
from ppvae.storage import load_state, save_state

_HOME = "pyro_params"

BASELINES = "__baseline_avg_downstream_cost_"
"""How the names of what `TraceGraph_ELBO` keeps in Pyro's store begin: averages, which are not trained."""


class PyroParams(nn.Module):
    """The values that a pair declares with `pyro.param`, as unconstrained `nn.Parameter`s.

    Read one by its Pyro name, in its constrained space: `pair.pyro_params["scale"]`. Iterating gives the names.
    """

    def __init__(self) -> None:
        super().__init__()
        self._constraints: dict[str, constraints.Constraint] = {}

    @staticmethod
    def key(name: str) -> str:
        """The attribute under which the parameter `name` is registered: attribute names hold no dots."""
        return "param:" + name.replace("%", "%25").replace(".", "%2E")

    def __iter__(self) -> Iterator[str]:
        """The Pyro names."""
        for key in self._parameters:
            yield _decoded(key)

    def extra_repr(self) -> str:
        """The Pyro names."""
        return ", ".join(self)

    def __contains__(self, name: str) -> bool:
        return self.key(name) in self._parameters

    def unconstrained(self, name: str) -> nn.Parameter:
        """The trained tensor behind `name`."""
        parameter = self._parameters.get(self.key(name))
        if parameter is None:
            raise KeyError(f"no pyro.param {name!r} here; the pair has declared {sorted(self._constraints)}")
        return parameter

    def __getitem__(self, name: str) -> Tensor:
        parameter = self.unconstrained(name)
        constraint = constraints.real if "$$$" in name else self._constraints.get(name)  # of a module's parameter
        if constraint is None:
            raise KeyError(
                f"pyro.param {name!r} was read from a file, which holds no constraints: run the pair once, or take "
                f"unconstrained({name!r})"
            )
        value = transform_to(constraint)(parameter)
        if value is parameter:
            value = parameter.view_as(parameter)  # a weak reference on the parameter itself could not be pickled
        value.unconstrained = weakref.ref(parameter)  # Pyro's own way back from a value to its parameter
        return value

    def set_unconstrained(self, name: str, parameter: nn.Parameter) -> None:
        """Registers `parameter` as the unconstrained value of `name`."""
        self.register_parameter(self.key(name), parameter)

    def scratch(self) -> PyroParams:
        """One that shares the parameters but is on no module: what is added to it is forgotten with it."""
        new = PyroParams()
        new._parameters.update(self._parameters)
        new._constraints = self._constraints
        return new


def pyro_name(name: str) -> str | None:
    """The name that a pair's parameter has in `pyro.param`, from the one that it has on the pair; None of others."""
    return _decoded(name.removeprefix(f"{_HOME}.")) if name.startswith(f"{_HOME}.param:") else None


def _decoded(key: str) -> str:
    return key.removeprefix("param:").replace("%2E", ".").replace("%25", "%")


class LocalParams(Messenger):
    """Answers every `param` statement from the pair, and remembers what the pair's own modules do not hold.

    Args:
        pair: the module whose `model` or `guide` runs inside.
        attach: whether new `pyro.param` values stay with the pair, or are forgotten with this object.
    """

    def __init__(self, pair: nn.Module, *, attach: bool) -> None:
        super().__init__()
        existing = pair._modules.get(_HOME)
        self._of_pair = existing if isinstance(existing, PyroParams) else PyroParams()
        self.home = self._of_pair if attach else self._of_pair.scratch()
        self._attach_to = pair if attach and existing is None else None
        self._owned = {id(p) for p in pair.parameters()}

    @property
    def forgets(self) -> bool:
        """Whether it holds parameters that are not on the pair, and end with it."""
        return self.home is not self._of_pair and len(self.home._parameters) > len(self._of_pair._parameters)

    def _keep(self, name: str, parameter: nn.Parameter) -> None:
        self.home.set_unconstrained(name, parameter)
        self._owned.add(id(parameter))
        if self._attach_to is not None:
            self._attach_to.add_module(_HOME, self.home)
            self._attach_to = None

    def _pyro_param(self, msg: Any) -> None:
        if msg["value"] is not None:
            return  # answered further in: by another pair that runs inside this one, or by the user
        if msg["fn"] != pyro.get_param_store().get_param:
            return  # a PyroModule's announcement of a parameter that it already holds
        name, *init = msg["args"]
        if name.startswith(BASELINES):
            return
        if init and isinstance(init[0], nn.Parameter) and "$$$" in name:
            msg["value"] = self._module_parameter(name, init[0])
        else:
            msg["value"] = self._value(name, init[0] if init else None, msg["kwargs"]["constraint"])

    def _module_parameter(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """A parameter of `pyro.module(...)`: the module's own tensor."""
        if id(parameter) in self._owned:
            return parameter
        if name in self.home and self.home.unconstrained(name) is not parameter:  # loaded from a file
            parameter.data.copy_(self.home.unconstrained(name).data)
            self._of_pair.set_unconstrained(name, parameter)  # from now on the module's value counts, not the file's
        self._keep(name, parameter)
        self._owned.add(id(parameter))
        return parameter

    def _value(self, name: str, init: Any, constraint: constraints.Constraint) -> Tensor:
        """A value of `pyro.param(...)`, in its constrained space."""
        store = pyro.get_param_store()
        if name in store:
            self._share_with_store(name, store)
        elif name not in self.home:
            if init is None:
                raise KeyError(f"pyro.param({name!r}) is read before any statement gives it an initial value")
            value = init() if callable(init) else init
            unconstrained = transform_to(constraint).inv(value.detach())
            self._keep(name, nn.Parameter(unconstrained.clone()))
        if init is not None:
            self.home._constraints[name] = constraint
        return self.home[name]

    def _share_with_store(self, name: str, store: Any) -> None:
        stored = store[name].unconstrained()
        if name not in self.home:
            if self._of_pair is self.home:
                warnings.warn(
                    f"pyro.param {name!r} is in Pyro's parameter store: it is trained there, from its value, by every "
                    "pair that uses the name; pyro.clear_param_store() beforehand gives each pair its own",
                    stacklevel=2,
                )
            self._keep(name, nn.Parameter(stored.detach()))
            self.home._constraints[name] = store._constraints[name]
        elif self.home.unconstrained(name).data_ptr() != stored.data_ptr():
            raise ValueError(
                f"pyro.param {name!r} has one value on the pair and another in Pyro's parameter store: "
                f"delete one of them, e.g. with `del pyro.get_param_store()[{name!r}]`"
            )


@contextmanager
def module_local() -> Iterator[None]:
    """Runs Pyro code with the parameters of every `PyroModule` on the module itself."""
    # Pyro's own check refuses a model with `pyro.param` inside a module, whose values are the pair's here.
    with pyro.settings.context(module_local_params=True, validate_poutine=False), fresh_module_state():
        yield


@contextmanager
def local_params(pair: nn.Module, *, attach: bool = True) -> Iterator[None]:
    """Runs Pyro code so that its parameters live on `pair`; restores every Pyro setting on leaving.

    Args:
        pair: the module whose `model` and `guide` run inside.
        attach: whether new `pyro.param` values stay with the pair afterwards (training) or are forgotten
            (evaluating a pair that was never trained must not pin its initial values).
    """
    with module_local(), LocalParams(pair, attach=attach):
        yield


def baselines() -> dict[str, Tensor]:
    """The running averages that `TraceGraph_ELBO` keeps in Pyro's store, as they are there: each update is another."""
    store = pyro.get_param_store()
    return {name: store[name].unconstrained() for name in store if name.startswith(BASELINES)}


@contextmanager
def baselines_kept() -> Iterator[None]:
    """The running averages of `TraceGraph_ELBO` come back as they were."""
    before = {name: value.detach().clone() for name, value in baselines().items()}
    try:
        yield
    finally:
        store = pyro.get_param_store()
        for name in baselines():
            if name in before:
                store[name] = before[name]
            else:
                del store[name]


def attach_home(pair: nn.Module, names: dict[str, Tensor]) -> None:
    """Gives `pair` a `pyro_params` with the registered `names`, so that a saved state has where to go."""
    home = pair._modules.get(_HOME)
    if not isinstance(home, PyroParams):
        home = PyroParams()
        pair.add_module(_HOME, home)
    for key, value in names.items():
        if key not in home._parameters:
            home.register_parameter(key, nn.Parameter(torch.empty_like(value)))


def save(pair: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Writes the parameters and buffers of `pair` to a safetensors file, atomically.

    Args:
        pair: a model/guide pair.
        path: the file; its folder is created.

    Returns:
        The path.

    Example:
        >>> import ppvae, tempfile
        >>> from ppvae.models import PPCA
        >>> path = ppvae.save(PPCA(8, 2), tempfile.mkdtemp() + "/ppca.safetensors")
        >>> pair = ppvae.load(PPCA(8, 2), path)
    """
    check_pair(pair)
    path = check_path("path", path)
    with naming_path("path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return save_state(path, {**pair.state_dict(), **waiting(pair)})


def load(pair: nn.Module, path: str | os.PathLike[str], *, allow_nonfinite: bool = False) -> nn.Module:
    """Reads weights that `save` wrote into `pair`, in place; a run folder stands for its `model.safetensors`.

    What the pair makes at first use (an autoguide its parameters) has the file's values from then on.

    Args:
        pair: a pair built as the saved one was.
        path: the file, or the folder that `fit` wrote.
        allow_nonfinite: whether to take weights that are NaN or infinite, to look at what became of them.

    Returns:
        The pair.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where the file is damaged, or naming what is missing, unexpected, of another shape or dtype, or not
            finite; the pair is then unchanged.

    Example:
        >>> import ppvae, tempfile
        >>> from ppvae.models import PPCA
        >>> path = ppvae.save(PPCA(8, 2), tempfile.mkdtemp() + "/ppca.safetensors")
        >>> pair = ppvae.load(PPCA(8, 2), path)
    """
    check_pair(pair)
    path = check_path("path", path)
    with naming_path("path"):
        state = load_state(path / "model.safetensors" if path.is_dir() else path)
    restore_weights(pair, state, source=str(path), allow_nonfinite=allow_nonfinite)
    return pair


def _is_finite_as(value: Tensor, own: Tensor | None) -> bool:
    """Whether values are finite, or, as those of a mask, not finite where the pair's own are not."""
    if bool(value.isfinite().all()):
        return True
    return own is not None and not is_lazy(own) and torch.equal(value, own.to(value.device))


def restore_weights(pair: nn.Module, state: dict[str, Tensor], *, source: str, allow_nonfinite: bool = True) -> None:
    """Copies the state dict `state` into `pair`, all of it or nothing.

    Raises:
        ValueError: naming what is missing, unexpected, of another shape or dtype, or not finite where that is not
            allowed; the pair is then unchanged.
    """
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"{source} holds no weights: it must hold tensors by name")
    own = pair.state_dict()
    declared = {k: v for k, v in state.items() if k.startswith("pyro_params.") and k not in own}
    unknown = {k: v for k, v in state.items() if k not in own and k not in declared}
    late = {k: v for k, v in unknown.items() if makes_later(owner(pair, k))}
    problems = [f"missing {key}" for key in own.keys() - state.keys()]
    problems += [f"unexpected {key}" for key in unknown.keys() - late.keys()]
    problems += [
        f"{key} of shape {tuple(state[key].shape)} where the pair has {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if not is_lazy(own[key]) and state[key].shape != own[key].shape
    ]
    problems += [
        f"{key} of {state[key].dtype} where the pair has {own[key].dtype}"
        for key in own.keys() & state.keys()
        if state[key].dtype != own[key].dtype
    ]
    problems += [f"{key} of {v.dtype}, no parameter's" for key, v in declared.items() if not v.is_floating_point()]
    if not allow_nonfinite:
        problems += [
            f"{key} not finite in {int((~value.isfinite()).sum())} of {value.numel()} elements"
            for key, value in state.items()
            if value.is_floating_point() and not _is_finite_as(value, own.get(key))
        ]
    if problems:
        raise ValueError(f"{source} does not fit this pair: " + "; ".join(sorted(problems)))
    if declared:
        attach_home(pair, {k.removeprefix("pyro_params."): v.to(device_of(pair)) for k, v in declared.items()})
    pair.load_state_dict({k: v for k, v in state.items() if k not in late})
    give(pair, late)
